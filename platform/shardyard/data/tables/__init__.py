"""From files to Arrow tables of the columns that are read, whatever the other columns hold."""
