"""`python -m kinfolk`"""

from kinfolk.cli.app import main

main()
