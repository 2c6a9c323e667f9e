"""A slow disk: shows a directory at another place, where whatever is asked takes its time. Needs `fusepy` from PyPI, and libfuse2.

    python slow_disk.py DIRECTORY MOUNTPOINT MILLISECONDS cached|direct

cached  what was read once lies in the kernel's memory; names and their attributes are asked for each time
direct  nothing is kept: each read comes here

It runs in the foreground, and ends when it is unmounted.
"""

import os
import sys
import time

from fuse import FUSE, FuseOSError, Operations


class SlowDisk(Operations):
    """Each operation waits, and is then what it is in the directory."""

    def __init__(self, directory, seconds):
        self.directory, self.seconds = directory, seconds

    def __call__(self, operation, *arguments):
        # What the kernel asks when it mounts has to be answered at once.
        if operation not in ("init", "destroy"):
            time.sleep(self.seconds)
        return super().__call__(operation, *arguments)

    def at(self, path):
        return os.path.join(self.directory, path.lstrip("/"))

    def getattr(self, path, fh=None):
        try:
            found = os.lstat(self.at(path))
        except OSError as error:
            raise FuseOSError(error.errno) from error
        names = ("st_mode", "st_size", "st_uid", "st_gid", "st_nlink", "st_mtime", "st_atime", "st_ctime")
        return {name: getattr(found, name) for name in names}

    def readdir(self, path, fh):
        return [".", "..", *os.listdir(self.at(path))]

    def open(self, path, flags):
        try:
            return os.open(self.at(path), flags)
        except OSError as error:
            raise FuseOSError(error.errno) from error

    def create(self, path, mode, fi=None):
        return os.open(self.at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

    def read(self, path, size, offset, fh):
        return os.pread(fh, size, offset)

    def write(self, path, data, offset, fh):
        return os.pwrite(fh, data, offset)

    def truncate(self, path, length, fh=None):
        os.truncate(self.at(path), length)

    def unlink(self, path):
        os.unlink(self.at(path))

    def rename(self, old, new):
        os.rename(self.at(old), self.at(new))

    def chmod(self, path, mode):
        os.chmod(self.at(path), mode)

    def release(self, path, fh):
        os.close(fh)

    def statfs(self, path):
        found = os.statvfs(self.directory)
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize", "f_namemax")
        return {name: getattr(found, name) for name in names}


if __name__ == "__main__":
    directory, place, milliseconds, how = sys.argv[1:]
    FUSE(SlowDisk(directory, int(milliseconds) / 1000), place, foreground=True, nothreads=False, attr_timeout=0, entry_timeout=0, big_writes=True, max_write=131072,
         direct_io=how == "direct")
