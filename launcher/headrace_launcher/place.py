"""Where in a repository an entry lies: its name, and whether what is there is current."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from headrace.contract import Contract
from headrace.errors import UsageError
from headrace_launcher import repository as repo


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a repository an entry of a name may lie.

    Attributes:
        repository: the repository.
        name: the name that is wanted.
        fixed: whether it must be that name.
        any_batching: whether an entry with other batches than the contract's will do.
        key_of: the key of an entry of a contract.
    """

    repository: Path
    name: str
    fixed: bool
    any_batching: bool
    key_of: Callable[[Contract], str]

    def find(self, contract: Contract) -> tuple[Path, Contract | None]:
        """Returns the entry's folder, and its contract if it is current.

        A name that is taken by another model, or by the same one built for another engine, GPU or
        version of TensorRT, is left to it: ours gets a suffix that says what is its own.
        """
        base = self._entry(self.name)
        names = [self.name]
        if not self.fixed:
            own = f"{self.name}-{contract.weights_hash[:8]}"
            names += [f"{self.name}-{contract.built_for}", own, f"{own}-{contract.built_for}"]
            if base is not None and base[0].weights_hash != contract.weights_hash:
                names = [*names[2:], *names[:2]]
        for name in names:
            entry = self._entry(name)
            if entry is None or entry[0].name != name or not self._is_of(entry, contract):
                continue
            if repo.damage(self.repository / name) is None:
                return self.repository / name, entry[0]
        for name in names[:2]:
            entry = self._entry(name)
            if entry is None or (
                entry[0].built_for == contract.built_for
                and (self.fixed or entry[0].weights_hash == contract.weights_hash)
            ):
                return self.repository / name, None
        if self.fixed and base is not None and (base[0].capability or contract.capability):
            raise UsageError(
                f"--name {self.name}: that entry was built for {base[0].built_for}, and this one "
                f"is for {contract.built_for}; give it another name"
            )
        return self.repository / names[-1], None

    def why_again(self, folder: Path, contract: Contract) -> str | None:
        """Returns why an entry that is there is not used; None where there is none."""
        entry = self._entry(folder.name)
        if entry is None:
            return None
        if not self._is_of(entry, contract):
            return "its settings or what built it differ"
        return f"it is damaged ({repo.damage(folder)})"

    def _is_of(self, entry: tuple[Contract, str], contract: Contract) -> bool:
        """Whether an entry is what would be built now."""
        there, key = entry
        if self.any_batching:
            contract = replace(
                contract,
                buckets=there.buckets,
                token_budget=there.token_budget,
                max_length=min(contract.max_length, there.length_limit),
            )
        return key == self.key_of(contract)

    def _entry(self, name: str) -> tuple[Contract, str] | None:
        return repo.read_entry(self.repository / name)
