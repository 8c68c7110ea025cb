"""The index of runs behind the page: reading run folders, storing and querying."""
