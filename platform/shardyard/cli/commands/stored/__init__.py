"""Commands on what runs have stored."""
