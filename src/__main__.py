"""``python -m hftpipe``."""
from hftpipe.cli import main

main()
