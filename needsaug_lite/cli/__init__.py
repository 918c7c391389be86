"""The command `needsaug`.

Every command imports what it needs when it is called: `--help` answers at once.
"""

from needsaug_lite.cli.commands import app as app
from needsaug_lite.cli.commands import main as main
