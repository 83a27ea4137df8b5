"""The journal: every stored event on disk before anybody forgets it.

``segment``  files that hold records, and where one begins; ``write`` appends to them, one group
at a time; ``drain`` moves store links into them; ``read`` gives them out again, by stream and in
order; ``check`` reads all of a journal and says what is wrong with it.

Files of one run, in a directory of its own, named after the run in hexadecimal::

    run.json                what the run was: instruments, configuration, layouts of the records
    00000000000000000001.seg    segments, named after the number of their first record
    spare-0                 segments made ahead: space that a full disk cannot take away
    end.json                how many records there are, once the run has ended in good order
    stored                  made when PostgreSQL has all of them
"""
