"""What a start takes over from the runs before it: their books, and what the venue says of them.

1. :func:`hftpipe.recovery.books.load` makes the books of an account from the database: those that
   its last run began with, and every execution recorded since.
2. :func:`hftpipe.recovery.settle.settle` asks the venue: what is still open is cancelled, every
   order of ours that has no last word is looked up by our own id, executions that only the venue
   knows of are booked, and the positions are compared.
3. :meth:`hftpipe.recovery.books.Books.records` are the records the ledger begins its stream with,
   so that the next start needs nothing older.
"""
