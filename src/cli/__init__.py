"""The ``hftpipe`` command."""
