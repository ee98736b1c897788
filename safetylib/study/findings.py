"""Claims that rest on measurements: each check reads ``results/<preset>/`` and says what the tables show."""
