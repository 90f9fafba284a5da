"""Several runs that answer one question: what each term does, which settings are best."""
