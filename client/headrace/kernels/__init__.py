"""The loops that NumPy has no function for, compiled to machine code by Numba.

Each is compiled at its first call (some seconds for all, once on a machine); the result is kept
beside its file, or in the user's cache folder where that cannot be written to. Numba looks only at
the file itself to see whether what it has kept still holds, so a loop calls none of another file.
While one runs, other threads do too. Arrays must be of the same type and layout at every call, or
it is compiled again. Indices are not checked, but where ``NUMBA_BOUNDSCHECK=1`` is set.
"""
