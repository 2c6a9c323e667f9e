"""Runs a script of tlsfuzzer with AES-GCM in the place of AES-CBC, to which many of them are hard-wired.

    tlsfuzzer_gcm.py DIRECTORY SCRIPT ARGUMENTS...

DIRECTORY is a clone of tlsfuzzer. The key exchange and the certificate's kind stay as they are.
"""

import os
import runpy
import sys

from tlslite.constants import CipherSuite

for exchange in ("ECDHE_RSA", "ECDHE_ECDSA"):
    for bits, hashed in ((128, "SHA256"), (256, "SHA384")):
        better = getattr(CipherSuite, f"TLS_{exchange}_WITH_AES_{bits}_GCM_{hashed}")
        for code in ("SHA", "SHA256", "SHA384"):
            name = f"TLS_{exchange}_WITH_AES_{bits}_CBC_{code}"
            if hasattr(CipherSuite, name):
                setattr(CipherSuite, name, better)

folder, script = sys.argv[1:3]
sys.argv = [os.path.join(folder, "scripts", script), *sys.argv[3:]]
sys.path.insert(0, folder)
runpy.run_path(sys.argv[0], run_name="__main__")
