"""The index of runs behind the pages: reading run folders, storing and querying."""
