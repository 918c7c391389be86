"""`python -m needsaug_lite.cli` is `needsaug`."""

from needsaug_lite.cli.commands import main

main()
