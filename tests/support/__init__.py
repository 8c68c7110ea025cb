"""What several tests share: tiny recipes and corpora, and processes that act as ranks."""
