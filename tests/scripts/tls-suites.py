#!/usr/bin/env python3
"""Runs suites of TLS against the server and nginx, and fails where the server has a finding that nginx does not have.

    git clone https://github.com/tlsfuzzer/tlsfuzzer /somewhere/else
    tests/scripts/tls-suites.py --tlsfuzzer /somewhere/else [--suites sslyze,testssl,tlsfuzzer] [--scripts test-ccs,...]

sslyze: Mozilla's intermediate policy, and none of its findings, with each certificate. testssl.sh: nothing that it does not
say of nginx as well, both with TLS 1.3 alone (Mozilla's modern policy) and with TLS 1.2 besides (the intermediate one, our default). tlsfuzzer: the scripts of tls-suites.toml, which says which of them run, with which flags, and why others
do not. What fails in one of them is tried against nginx with Mozilla's intermediate policy, as TLS 1.2 is part of it: what fails there, too,
is told and is no failure. Most scripts for TLS 1.2 are hard-wired to AES-CBC, which is not spoken here; they are given AES-GCM
with the same key exchange instead, for both.

tlsfuzzer is brought for the run and is no part of this project: keep it outside of the tree. sslyze, tlslite-ng and kyber-py come from PyPI into a temporary
directory, or are in the virtual environment that --venv names. Exit codes: 0, 1 a finding, 64 wrong flags.
"""

import ast
import concurrent.futures
import contextlib
import json
import os
import re
import sys
import time
import tomllib

import common
import processes
from common import Trouble

SUITES = ("sslyze", "testssl", "tlsfuzzer")
LIST = os.path.join(common.ROOT, "tests", "scripts", "tls-suites.toml")
GCM = os.path.join(common.ROOT, "tests", "scripts", "clients", "tlsfuzzer_gcm.py")

# https://ssl-config.mozilla.org: the modern policy is TLS 1.3 alone, the intermediate one these suites of TLS 1.2 besides.
SUITES_1_2 = ":".join(f"ECDHE-{kind}-{cipher}" for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305") for kind in ("ECDSA", "RSA"))
NGINX = """
daemon off;
worker_processes 1;
pid {home}/nginx.pid;
error_log {home}/error.log crit;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    ssl_session_timeout 1d;
    ssl_session_cache shared:sessions:10m;
    ssl_prefer_server_ciphers off;
    ssl_ciphers {suites};
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_protocols {protocols};
        ssl_certificate {certificate}.pem;
        ssl_certificate_key {certificate}.key;
        {more}
        location / {{ return 200 "ok"; }}
    }}
}}
"""


def main(home):
    flags = common.parser(__doc__.splitlines()[0])
    flags.add_argument("--tlsfuzzer", metavar="DIRECTORY", help="a clone of tlsfuzzer/tlsfuzzer")
    flags.add_argument("--suites", default=",".join(SUITES), help="separated by commas (default: %(default)s)")
    flags.add_argument("--scripts", default="", help="of tlsfuzzer, separated by commas (default: all of the list)")
    flags.add_argument("--conversations", type=int, default=40, help="of a script, chosen at random, 0 for all (default: %(default)s)")
    flags.add_argument("--parallel", type=int, default=2, help="scripts of tlsfuzzer at once, 1 to 16 (default: %(default)s)")
    flags.add_argument("--venv", help="a virtual environment that has sslyze, tlslite-ng and kyber-py (default: from PyPI)")
    options = flags.parse_args()
    chosen = options.suites.split(",")
    if any(suite not in SUITES for suite in chosen) or options.server == "nginx" or not 1 <= options.parallel <= 16:
        flags.error("see --help; nginx is the control of each suite")
    if "tlsfuzzer" in chosen:
        folder = os.path.abspath(options.tlsfuzzer or "")
        if not options.tlsfuzzer or not os.path.isdir(os.path.join(folder, "scripts")):
            flags.error("--tlsfuzzer DIRECTORY: git clone https://github.com/tlsfuzzer/tlsfuzzer brings it")
        if folder.startswith(common.ROOT + os.sep):
            flags.error("--tlsfuzzer: keep the suite outside of this project")
        options.tlsfuzzer = folder
    if not os.access(options.server, os.X_OK):
        flags.error(f"--server {options.server}: no such program; `cargo build --release` makes it")
    options.bin = os.path.join(os.path.abspath(options.venv), "bin") if options.venv else common.python_with(home, "sslyze", "tlslite-ng>=0.9.0b2", "kyber-py")
    made = certificates(home)
    results = common.Results()
    for backend in common.backends(options):
        print(f"\n{backend}")
        if "sslyze" in chosen:
            sslyze(home, options, backend, made, results)
        if "testssl" in chosen:
            testssl(home, options, backend, made, results)
        if "tlsfuzzer" in chosen:
            tlsfuzzer(home, options, backend, made, results)
    return results.exit_code()


def certificates(home):
    """An issuer, and certificates for localhost and for a client: the beginnings of their paths."""
    place = os.path.join(home, "certificates")
    os.mkdir(place)
    kinds = {"rsa": ["rsa:2048"], "ecdsa": ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]}
    path = {name: os.path.join(place, name) for name in ("issuer", *kinds, "client", "client-ecdsa")}

    def make(name, kind, *more):
        line = ["openssl", "req", "-x509", "-newkey", *kinds[kind], "-nodes", "-days", "30", "-keyout", f"{path[name]}.key", "-out", f"{path[name]}.pem",
                "-subj", f"/CN={name}", *more]
        status, output = processes.run_to_end(line, timeout=60)
        if status != 0:
            raise Trouble(f"{' '.join(line)}:\n{output}")

    make("issuer", "ecdsa")
    leaf = ["-CA", f"{path['issuer']}.pem", "-CAkey", f"{path['issuer']}.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    for name in kinds:
        make(name, name, *leaf, "-addext", "subjectAltName=DNS:localhost", "-addext", "keyUsage=critical,digitalSignature",
             "-addext", "extendedKeyUsage=serverAuth")
    make("client", "rsa", *leaf)
    make("client-ecdsa", "ecdsa", *leaf)
    return path


@contextlib.contextmanager
def ours(home, options, backend, made, certificate="rsa", client_ca=False, more=()):
    """The server with its default policy; yields its port."""
    port, place = processes.free_port(), os.path.join(home, f"ours-{processes.free_port()}")
    os.mkdir(place)
    line = [os.path.abspath(options.server), "--backend", backend, "--listen", f"127.0.0.1:{port}", "--tls-cert", f"{made[certificate]}.pem",
            "--tls-key", f"{made[certificate]}.key", "--run-dir", os.path.join(place, "run"), "--no-access-log", "--stats-interval", "0s",
            "--respond", "ok", *more]
    if client_ca:
        line += ["--tls-client-ca", f"{made['issuer']}.pem"]
    log = os.path.join(place, "log")
    with processes.running(line, log, cwd=place) as process:
        wait(process, log, port, client_ca)
        yield port
        if process.poll() is not None:
            raise Trouble(f"the server has ended with {process.returncode}\n{processes.tail(log)}")


@contextlib.contextmanager
def nginx(home, made, certificate="rsa", modern=False, client_ca=False):
    """The control; yields its port."""
    port, place = processes.free_port(), os.path.join(home, f"nginx-{processes.free_port()}")
    os.mkdir(place)
    more = f"ssl_verify_client on; ssl_client_certificate {made['issuer']}.pem;" if client_ca else ""
    protocols = "TLSv1.3" if modern else "TLSv1.2 TLSv1.3"
    with open(os.path.join(place, "nginx.conf"), "w") as file:
        file.write(NGINX.format(home=place, port=port, suites=SUITES_1_2, protocols=protocols, certificate=made[certificate], more=more))
    processes.need("nginx")
    user = ["-g", "user root;"] if os.geteuid() == 0 else []
    log = os.path.join(place, "log")
    line = [processes.find("nginx"), "-c", os.path.join(place, "nginx.conf"), "-p", place, "-e", os.path.join(place, "error.log"), *user]
    with processes.running(line, log) as process:
        wait(process, log, port, client_ca)
        yield port


def wait(process, log, port, client_ca):
    if not client_ca:
        return processes.wait_until_it_answers(process, log, port, secure=True)
    # Who has no certificate gets no answer.
    for _ in range(200):
        with contextlib.suppress(OSError):
            return processes.connect(port).close()
        time.sleep(0.05)
    raise Trouble(f"nobody listens on port {port}\n{processes.tail(log)}")


def sslyze(home, options, backend, made, results):
    for certificate in ("rsa", "ecdsa"):
        with ours(home, options, backend, made, certificate) as port:
            line = [os.path.join(options.bin, "sslyze"), "--mozilla_config=intermediate", f"--certinfo_ca_file={made['issuer']}.pem", f"localhost:{port}"]
            _, output = processes.run_to_end(line, timeout=300)
        verdict = output.partition("COMPLIANCE AGAINST")[2]
        said = [line.strip()[2:] for line in verdict.splitlines() if line.strip().startswith("* ")]
        # That nobody in the world trusts this issuer is no finding about the server.
        said = [line for line in said if not line.startswith("certificate_path_validation")]
        done = "Checking results against" in verdict and "ERROR" not in output.partition("SSL 2.0 Cipher Suites")[2].partition("COMPLIANCE")[0]
        results.add(f"{backend} sslyze {certificate}: Mozilla's intermediate policy", done and not said, "; ".join(said) if done else output[-500:])
        bad = re.findall(r"^.*(?:VULNERABLE - |FAILED - |Vulnerable to ).*$", output.partition("SSL 2.0 Cipher Suites")[2].partition("COMPLIANCE")[0], re.MULTILINE)
        bad = [line.strip() for line in bad if "Not vulnerable" not in line]
        results.add(f"{backend} sslyze {certificate}: no finding", not bad, "; ".join(bad))


def testssl(home, options, backend, made, results):
    processes.need("testssl")

    def findings(port):
        """Whatever is not as it should be, and how bad that is."""
        path = os.path.join(home, f"testssl-{port}.json")
        line = ["testssl", "--quiet", "--color", "0", "--warnings", "off", "--jsonfile", path, f"localhost:{port}"]
        _, output = processes.run_to_end(line, timeout=1800)
        try:
            with open(path) as file:
                found = json.load(file)
        except (OSError, ValueError) as error:
            raise Trouble(f"testssl has said nothing: {error}\n{output[-500:]}") from error
        return {(entry["id"], entry["severity"]): entry["finding"] for entry in found if entry["severity"] not in ("OK", "INFO", "DEBUG")}

    for policy, more in (("modern", ("--tls-min-version", "1.3")), ("intermediate", ())):
        with nginx(home, made, "ecdsa", modern=policy == "modern") as port:
            control = findings(port)
        with ours(home, options, backend, made, "ecdsa", more=more) as port:
            mine = findings(port)
        worse = [f"{name} {severity}: {finding}" for (name, severity), finding in sorted(mine.items()) if (name, severity) not in control]
        results.add(f"{backend} testssl, {policy} policy", not worse, "; ".join(worse) or f"{len(mine)} findings, {len(control)} of nginx")


class Script:
    """A script of tlsfuzzer, and what its list says of it."""

    def __init__(self, entry):
        self.name, self.flags = entry["script"], entry.get("flags", [])
        self.certificate, self.client_ca = entry.get("certificate", "rsa"), entry.get("client_ca", False)
        self.excepted, self.alerts = entry.get("except", {}), entry.get("alerts", {})
        self.known = entry.keys() <= {"script", "flags", "certificate", "client_ca", "except", "alerts"}

    def server(self):
        return self.certificate, self.client_ca

    def is_excepted(self, conversation, reason):
        said = [f'Expected alert description "{expected}" does not match received "{received}"'
                for pattern, (expected, received, _) in self.alerts.items() if re.fullmatch(pattern, conversation)]
        return reason in said or any(re.fullmatch(pattern, conversation) for pattern in self.excepted)

    def run(self, options, made, port, only=()):
        """The conversations that failed, with the reason of each; and how many did not."""
        flags = [flag.format(client=made["client"], client_ecdsa=made["client-ecdsa"]) for flag in self.flags]
        line = [os.path.join(options.bin, "python"), GCM, options.tlsfuzzer, f"{self.name}.py", "-h", "localhost", "-p", str(port), *flags]
        with open(os.path.join(options.tlsfuzzer, "tlsfuzzer", "_apps", self.name.replace("-", "_") + ".py")) as source:
            has_count = re.search(r'getopt\(\s*argv,\s*"[^"]*n:', source.read())
        if has_count:
            line += ["-n", "0" if only else str(options.conversations)]
        status, output = processes.run_to_end([*line, *only], timeout=900, cwd=options.tlsfuzzer)
        passed = re.search(r"^PASS: (\d+)$", output, re.MULTILINE) or re.search(r"^successful: (\d+)$", output, re.MULTILINE)
        listed = re.search(r"^FAILED:\n((?:\t.*\n)+)", output, re.MULTILINE)
        if not passed or (status != 0 and not listed):
            return {"the whole of it": output[-600:]}, 0
        failed = {}
        for text in listed[1].splitlines() if listed and status else []:
            name = ast.literal_eval(text.strip())
            block = output.partition(f"{name} ...\n")[2].partition("\n\n")[0]
            failed[name] = block.strip().splitlines()[-1].removeprefix("AssertionError: ") if block.strip() else ""
        return failed, int(passed[1])


def tlsfuzzer(home, options, backend, made, results):
    with open(LIST, "rb") as file:
        said = tomllib.load(file)
    scripts = [Script(entry) for entry in said["run"]]
    exempt = [name for entry in said["exempt"] for name in entry["scripts"]]
    there = {name[:-3] for name in os.listdir(os.path.join(options.tlsfuzzer, "scripts")) if name.startswith("test-") and name.endswith(".py")}
    named = {script.name for script in scripts} | set(exempt)
    results.add(f"{backend} tlsfuzzer: each script is in the list", named == there and all(script.known for script in scripts), ", ".join(sorted(named ^ there)))
    if options.scripts:
        scripts = [script for script in scripts if script.name in options.scripts.split(",")]
    for kind in sorted({script.server() for script in scripts}):
        certificate, client_ca = kind
        with ours(home, options, backend, made, *kind) as port, nginx(home, made, certificate, client_ca=client_ca) as control:
            with concurrent.futures.ThreadPoolExecutor(options.parallel) as pool:
                chosen = [script for script in scripts if script.server() == kind]
                for script, verdict in zip(chosen, pool.map(lambda script: judge(script, options, made, port, control), chosen)):
                    failed, excepted, alike, passed = verdict
                    detail = f"{passed} passed"
                    detail += f", {len(excepted)} excepted" if excepted else ""
                    detail += f", {len(alike)} fail with nginx as well" if alike else ""
                    detail += "".join(f"\n        {name}: {reason}" for name, reason in failed.items())
                    results.add(f"{backend} tlsfuzzer {script.name} {' '.join(script.flags)}".rstrip(), not failed and passed > 0, detail)


def judge(script, options, made, port, control):
    """What fails with the server alone, what the list excepts, what fails with nginx as well, and how many pass."""
    failed, passed = script.run(options, made, port)
    excepted = [name for name, reason in failed.items() if script.is_excepted(name, reason)]
    failed = {name: reason for name, reason in failed.items() if name not in excepted}
    alike = []
    if failed and "the whole of it" not in failed:
        theirs, _ = script.run(options, made, control, only=list(failed))
        alike = [name for name in failed if name in theirs]
    return {name: reason for name, reason in failed.items() if name not in alike}, excepted, alike, passed


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    common.run(main)
