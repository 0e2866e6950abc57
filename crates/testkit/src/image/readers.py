"""Reads the image that this script is in, in several ways at once, and compares every byte with the truth.

Usage: reader.py END MODE...   Reads until the file END exists and each mode has made a step. Ends with status 0,
or with the first difference. How many steps each mode made is in a file of its name beside END: what a container
writes right before its end can be lost on a busy machine.
"""

import hashlib
import json
import mmap
import os
import random
import subprocess
import sys
import threading
import traceback

DATA = "/data"
BLOCK = 65536

with open("/app/truth.json") as file:
    TRUTH = json.load(file)


def check(what, data, expected):
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise AssertionError(f"{what}: {len(data)} bytes are {found}, not {expected}")


def forget(fd):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def sequential():
    with open(f"{DATA}/big", "rb", buffering=0) as file:
        forget(file.fileno())
        for number, expected in enumerate(TRUTH["big"]):
            data = b""
            while len(data) < BLOCK:
                more = file.read(BLOCK - len(data))
                if not more:
                    break
                data += more
            check(f"block {number} in turn", data, expected)
            yield


def at_random():
    fd = os.open(f"{DATA}/big", os.O_RDONLY)
    try:
        for _ in range(200):
            number = random.randrange(len(TRUTH["big"]))
            forget(fd)
            data = os.pread(fd, BLOCK, number * BLOCK)
            check(f"block {number} at random", data, TRUTH["big"][number])
            yield
    finally:
        os.close(fd)


def mapped():
    fd = os.open(f"{DATA}/big", os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as memory:
            for _ in range(200):
                number = random.randrange(len(TRUTH["big"]))
                memory.madvise(mmap.MADV_DONTNEED)
                forget(fd)
                data = memory[number * BLOCK:(number + 1) * BLOCK]
                check(f"block {number} mapped", data, TRUTH["big"][number])
                yield
    finally:
        os.close(fd)


def programs():
    for number in random.sample(range(TRUTH["programs"]), TRUTH["programs"]):
        run = subprocess.run(
            ["busybox", "echo", str(number)],
            executable=f"{DATA}/bin/{number}",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if run.returncode != 0 or run.stdout != f"{number}\n".encode():
            raise AssertionError(f"program {number}: {run.returncode} {run.stdout}")
        yield


def find():
    seen = 0

    def failed(error):
        raise error

    for folder, folders, files in os.walk("/", onerror=failed):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev")]
        for name in files:
            os.lstat(os.path.join(folder, name))
            seen += 1
        yield
    if seen < len(TRUTH["small"]):
        raise AssertionError(f"only {seen} files were found")


def small_files():
    for number in random.sample(range(len(TRUTH["small"])), len(TRUTH["small"])):
        with open(f"{DATA}/small/{number}", "rb") as file:
            check(f"small file {number}", file.read(), TRUTH["small"][number])
            forget(file.fileno())
        yield


def held():
    """What is open or mapped once, for as long as the program runs."""
    fd = os.open(f"{DATA}/big", os.O_RDONLY)
    folder = os.open(f"{DATA}/small", os.O_RDONLY | os.O_DIRECTORY)
    memory = mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)
    while True:
        number = random.randrange(len(TRUTH["big"]))
        place, expected = number * BLOCK, TRUTH["big"][number]
        forget(fd)
        check(f"block {number} of the open file", os.pread(fd, BLOCK, place), expected)
        memory.madvise(mmap.MADV_DONTNEED)
        forget(fd)
        check(f"block {number} of the map", memory[place:place + BLOCK], expected)
        # Rewinds the open folder and reads it to its end.
        found = len(os.listdir(folder))
        if found != len(TRUTH["small"]):
            raise AssertionError(f"the open folder has {found} entries")
        name = str(random.randrange(found))
        inside = os.open(name, os.O_RDONLY, dir_fd=folder)
        with open(inside, "rb") as file:
            check(f"{name} in the open folder", file.read(), TRUTH["small"][int(name)])
        yield


MODES = {
    "sequential": sequential,
    "random": at_random,
    "mmap": mapped,
    "exec": programs,
    "find": find,
    "small": small_files,
    "held": held,
}


def repeat(mode, end, steps):
    try:
        while steps[mode] == 0 or not os.path.exists(end):
            for _ in MODES[mode]():
                steps[mode] += 1
                if os.path.exists(end):
                    break
    except BaseException:
        sys.stdout.write(f"FAILED {mode} after {steps[mode]} steps\n{traceback.format_exc()}")
        sys.stdout.flush()
        os._exit(1)


def main():
    end = sys.argv[1]
    steps = {mode: 0 for mode in sys.argv[2:]}
    threads = [threading.Thread(target=repeat, args=(mode, end, steps)) for mode in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mode, count in steps.items():
        with open(os.path.join(os.path.dirname(end), mode), "w") as file:
            file.write(str(count))


main()
