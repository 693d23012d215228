# SPDX-License-Identifier: Apache-2.0
"""What people and malware do to the files of a volume: documents made, and then encrypted, packed, uploaded, replaced.

Every function takes the mount point and a random.Random and uses the real programs (openssl, gpg, zstd, gzip, xz, cjpeg,
sqlite3, pgbench). A Library holds real texts of this machine, of which documents are made."""
import glob
import io
import math
import os
import pwd
import shutil
import sqlite3
import subprocess
import time
import zipfile

KIB, MIB = 1 << 10, 1 << 20
ATTACK_S = 60
WORDS = ("the of and to in is was for that on with as by at from which this be are or an were it had not have has their one "
         "order invoice customer payment account number street delivery contract report quarter amount total please regards").split()
POSTGRES = next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin/pgbench"), reverse=True)), "")


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise RuntimeError("%s: status %d: %s" % (command, done.returncode, done.stdout[-2000:]))
    return done.stdout


class Library:
    """Texts and pictures to make documents of. Made once: `directory` is kept as long as it is used."""

    def __init__(self, directory, dice, pictures=6):
        self.directory = directory
        self.text = self._texts()
        self.pictures = [self._picture(dice, i) for i in range(pictures)]

    @staticmethod
    def _texts(limit=24 * MIB):
        pool = []
        size = 0
        for pattern in ("/usr/share/doc/**/*", "/usr/lib/python3*/**/*.py", "/usr/include/**/*.h"):
            for path in sorted(glob.glob(pattern, recursive=True)):
                if not os.path.isfile(path) or path.endswith((".gz", ".png", ".jpg", ".pdf", ".xz", ".woff2", ".woff", ".zip")):
                    continue
                with open(path, "rb") as f:
                    text = f.read(256 * KIB)
                if b"\0" in text:
                    continue
                pool.append(text)
                size += len(text)
                if size > limit:
                    return b"".join(pool)
        pool.append(" ".join(WORDS[i * i % 89 % len(WORDS)] for i in range(MIB)).encode())
        return b"".join(pool)

    def _picture(self, dice, i, width=1000, height=700):
        """A picture in PPM: smooth shapes with grain, as a camera's. Without cjpeg it stays a PNG-like deflated raster."""
        a, b, c = dice.uniform(20, 60), dice.uniform(30, 90), dice.uniform(5, 25)
        wave = [[int(40 * math.sin(x / s)) for x in range(max(width, height))] for s in (a, b, c)]
        grain = bytes(g & 15 for g in dice.randbytes(4 * width * 3))
        path = "%s/picture-%d.ppm" % (self.directory, i)
        with open(path, "wb") as f:
            f.write(b"P6 %d %d 255\n" % (width, height))
            for y in range(height):
                shift = dice.randrange(3 * width)
                row = bytearray(3 * width)
                for k in range(3):
                    base = 110 + wave[k][y]
                    row[k::3] = bytes(base + w for w in wave[(k + 1) % 3][:width])
                mixed = int.from_bytes(row, "little") + int.from_bytes(grain[shift:shift + 3 * width], "little")
                f.write(mixed.to_bytes(3 * width, "little"))
        return path

    def slice(self, dice, size):
        at = dice.randrange(max(1, len(self.text) - size))
        return self.text[at:at + size]

    def jpeg(self, dice):
        source = dice.choice(self.pictures)
        if shutil.which("cjpeg"):
            return run("cjpeg", "-quality", dice.randrange(80, 97), "-smooth", dice.randrange(0, 8), source)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z, open(source, "rb") as f:
            z.writestr("picture", f.read()[dice.randrange(3000):])
        return packed.getvalue()

    def office(self, dice):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
            z.writestr("[Content_Types].xml", "<Types/>" * 20)
            z.writestr("word/document.xml", b"<w:document>" + self.slice(dice, dice.randrange(50 * KIB, 800 * KIB)))
            if dice.random() < 0.5:
                z.writestr("word/media/image1.jpeg", self.jpeg(dice))
        return packed.getvalue()


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(content)


def documents(root, dice, library, mib=48):
    """Text, office files, pictures and a database; about half of it structured."""
    size, i = 0, 0
    while size < mib * MIB:
        kind = dice.random()
        name = "%s/documents/%d/%d" % (root, i % 12, i)
        if kind < 0.6:
            content, name = library.slice(dice, int(dice.lognormvariate(11, 1.2)) + 200), name + dice.choice([".txt", ".csv", ".html"])
        elif kind < 0.8:
            content, name = library.office(dice), name + ".docx"
        else:
            content, name = library.jpeg(dice), name + ".jpg"
        write(name, content)
        size += len(content)
        i += 1
    base = sqlite3.connect(root + "/documents/base.sqlite")
    base.execute("create table orders (id integer primary key, customer text, note text)")
    rows = [(library.slice(dice, 20).decode("latin-1"), library.slice(dice, dice.randrange(50, 900)).decode("latin-1")) for _ in range(mib * 500)]
    base.executemany("insert into orders (customer, note) values (?, ?)", rows)
    base.commit()
    base.close()


AGENTS = ["Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
          "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
          "curl/7.88.1", "kube-probe/1.29", "Prometheus/2.45.0"]


def logs(root, dice, mib=64):
    """Access logs as web servers write them: xz -1 makes a tenth of them."""
    os.makedirs(root + "/log", exist_ok=True)
    paths = ["/api/v1/%s/%s" % (dice.choice(WORDS), dice.choice(WORDS)) for _ in range(60)] + ["/healthz"] * 40
    clients = ["10.%d.%d.%d" % (dice.randrange(4), dice.randrange(256), dice.randrange(256)) for _ in range(300)]
    for n in range(4):
        with open("%s/log/access-%d.log" % (root, n), "w") as f:
            t = 0.0
            while f.tell() < mib * MIB // 4:
                lines = []
                for _ in range(2000):
                    t += dice.expovariate(20)
                    lines.append('%s - - [21/Nov/2026:%02d:%02d:%02d +0000] "GET %s HTTP/1.1" %d %d "-" "%s"\n' % (
                        dice.choice(clients), t // 3600 % 24, t // 60 % 60, t % 60, dice.choice(paths), dice.choice([200] * 9 + [304, 404]),
                        int(dice.paretovariate(1.2) * 600) // 16 * 16, dice.choice(AGENTS)))
                f.write("".join(lines))


def files_below(root, dice):
    found = sorted(p for p in glob.glob(root + "/documents/**/*", recursive=True) if os.path.isfile(p))
    dice.shuffle(found)
    return found


def aside(root, what):
    """A path outside of the volume, for this trial alone."""
    return "/dev/shm/%s-%d-%s" % (what, os.getpid(), os.path.basename(root))


def victims(root, dice):
    """The documents in any order, for at most ATTACK_S: it is noticed by then, or not."""
    end = time.monotonic() + ATTACK_S
    for path in files_below(root, dice):
        if time.monotonic() > end:
            break
        yield path


def openssl(source, target):
    run("openssl", "enc", "-aes-256-ctr", "-pbkdf2", "-iter", "1000", "-pass", "pass:x", "-in", source, "-out", target)


# ---- what must be noticed ----

def encrypt_rename(root, dice, library):
    """openssl to a new file, which is renamed over the old one."""
    for path in victims(root, dice):
        openssl(path, path + ".tmp")
        os.rename(path + ".tmp", path)


def encrypt_delete(root, dice, library):
    """openssl to a new file; the old one is removed."""
    for path in victims(root, dice):
        openssl(path, path + ".locked")
        os.unlink(path)


def encrypt_overwrite(root, dice, library):
    """openssl, and dd conv=notrunc over the same blocks."""
    locked = aside(root, "locked")
    for path in victims(root, dice):
        openssl(path, locked)
        run("dd", "if=" + locked, "of=" + path, "conv=notrunc,fsync", "bs=1M", "status=none")
        os.unlink(locked)


def encrypt_truncate(root, dice, library):
    """openssl, and the old file is truncated and written again."""
    locked = aside(root, "locked")
    for path in victims(root, dice):
        openssl(path, locked)
        shutil.copyfile(locked, path)
        os.unlink(locked)


def encrypt_gpg(root, dice, library):
    """gpg --symmetric (which compresses first); the old file is removed."""
    home = aside(root, "gpg")
    os.makedirs(home, 0o700, exist_ok=True)
    for path in victims(root, dice):
        run("gpg", "--homedir", home, "--batch", "--quiet", "--yes", "--pinentry-mode", "loopback", "--passphrase", "x", "--s2k-count", "1024",
            "--symmetric", path)
        os.unlink(path)
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], stderr=subprocess.DEVNULL)
    shutil.rmtree(home, ignore_errors=True)


# ---- what must not ----

def zstd_keep(root, dice, library):
    """zstd of logs, which stay."""
    run("zstd", "-q", "-%d" % dice.randrange(1, 10), *sorted(glob.glob(root + "/log/*.log")))


def zstd_remove(root, dice, library):
    """zstd of logs, which are removed."""
    run("zstd", "-q", "--rm", "-%d" % dice.randrange(1, 10), *sorted(glob.glob(root + "/log/*.log")))


def gzip_rotate(root, dice, library):
    """Logs are rotated: gzip replaces them."""
    run("gzip", *sorted(glob.glob(root + "/log/*.log")))


def xz_rotate(root, dice, library):
    """Logs are rotated: xz replaces them."""
    run("xz", "-1", *sorted(glob.glob(root + "/log/*.log")))


def xz_documents(root, dice, library):
    """The text documents are replaced by xz of them. A known limit: it looks like gpg of them."""
    for path in files_below(root, dice):
        if path.endswith((".txt", ".csv", ".html")):
            run("xz", "-1", path)


def upload(root, dice, library):
    """60 MB of photos arrive."""
    size = 0
    while size < 60 * MIB:
        content = library.jpeg(dice)
        write("%s/photos/%d.jpg" % (root, size), content)
        size += len(content)


def delete_upload(root, dice, library):
    """The documents are removed, and photos arrive in the same minute."""
    shutil.rmtree(root + "/documents")
    upload(root, dice, library)


def backup(root, dice, library):
    """tar and zstd of the documents, which stay."""
    run("tar", "--zstd", "-cf", root + "/backup.tar.zst", "-C", root, "documents")


def edit(root, dice, library):
    """Documents are changed, some are new, some removed."""
    for i, path in enumerate(files_below(root, dice)[:200]):
        if i % 5 == 0:
            os.unlink(path)
        elif path.endswith(".docx"):
            write(path, library.office(dice))
        elif not path.endswith((".jpg", ".sqlite")):
            write(path, library.slice(dice, os.path.getsize(path) + 1000))


def pgbench(root, dice, library):
    """A PostgreSQL is made and driven by pgbench."""
    user = pwd.getpwnam("postgres")
    binary = os.path.dirname(POSTGRES)
    data, run_dir = root + "/pg", aside(root, "pg")
    os.makedirs(run_dir, exist_ok=True)
    os.makedirs(data)
    os.chown(data, user.pw_uid, user.pw_gid)
    os.chown(run_dir, user.pw_uid, user.pw_gid)
    as_postgres = dict(user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", env={"HOME": "/", "PATH": "/usr/bin:/bin"})
    run(binary + "/initdb", "-D", data, "-A", "trust", "--no-sync", **as_postgres)
    options = "-c listen_addresses= -k %s -c shared_buffers=16MB" % run_dir
    subprocess.run([binary + "/pg_ctl", "-D", data, "-w", "-o", options, "-l", data + "/log", "start"], check=True, stdout=subprocess.DEVNULL,
                   **as_postgres)
    try:
        run(binary + "/pgbench", "-h", run_dir, "-i", "-q", "-s", "3", "postgres", **as_postgres)
        run(binary + "/pgbench", "-h", run_dir, "-c", "4", "-T", "20", "postgres", **as_postgres)
    finally:
        run(binary + "/pg_ctl", "-D", data, "-w", "-m", "fast", "stop", **as_postgres)
        shutil.rmtree(run_dir, ignore_errors=True)


ATTACKS = [encrypt_rename, encrypt_delete, encrypt_overwrite, encrypt_truncate, encrypt_gpg]
HARMLESS = [zstd_keep, zstd_remove, gzip_rotate, xz_rotate, xz_documents, upload, delete_upload, backup, edit] + ([pgbench] if POSTGRES else [])
