"""headrace beside what else there is: ``headrace bench peers``."""
