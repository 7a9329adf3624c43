"""Where the content of registered instances lies: the path of a row, and aliases, which are other files with the same content.

Each is stored with what sending needs (mount point, offset of the data set) and with what tells that the file is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, text

from examsend.queue.files import bigints, from_text, signed, texts, to_text
from examsend.queue.versions import Arrival, Key, Version
from examsend.states import FILE_LOST, Outcome

# An inode number that changes while nothing else does is not the file system's own (SMB without server numbers): it is not
# compared from then on, or each host would read the file again after the other.
_INODE = """
    CASE WHEN {old}.file_ctime_ns = {new}.ctime AND {old}.file_inode IS DISTINCT FROM {new}.inode THEN NULL ELSE {new}.inode END
"""

_MOVE = text(f"""
    UPDATE exam_batch_instances i
    SET processed_filepath = w.path, mount_point = w.mount, file_size = w.size, file_mtime_ns = w.mtime, file_ctime_ns = w.ctime,
        file_inode = CASE WHEN i.processed_filepath = w.path THEN {_INODE.format(old="i", new="w")} ELSE w.inode END,
        dataset_offset = w.off, transfer_syntax_uid = w.syntax
    FROM unnest(CAST(:ids AS bigint[]), CAST(:paths AS text[]), CAST(:mounts AS text[]), CAST(:sizes AS bigint[]),
                CAST(:mtimes AS bigint[]), CAST(:inodes AS bigint[]), CAST(:ctimes AS bigint[]), CAST(:offsets AS bigint[]),
                CAST(:syntaxes AS text[])) w (id, path, mount, size, mtime, inode, ctime, off, syntax)
    WHERE i.id = w.id AND (i.outcome <> '{Outcome.STORED}' OR i.processed_filepath = w.path)
""")

_ALIAS = text("""
    INSERT INTO exam_batch_instance_aliases AS a (instance_id, file_path, mount_point, file_size, file_mtime_ns, file_inode,
        file_ctime_ns, dataset_offset, transfer_syntax_uid)
    SELECT r.id, w.path, w.mount, w.size, w.mtime, w.inode, w.ctime, w.off, w.syntax
    FROM unnest(CAST(:destinations AS bigint[]), CAST(:uids AS text[]), CAST(:digests AS text[]), CAST(:paths AS text[]),
                CAST(:mounts AS text[]), CAST(:sizes AS bigint[]), CAST(:mtimes AS bigint[]), CAST(:inodes AS bigint[]),
                CAST(:ctimes AS bigint[]), CAST(:offsets AS bigint[]), CAST(:syntaxes AS text[]))
         w (destination, uid, digest, path, mount, size, mtime, inode, ctime, off, syntax)
    CROSS JOIN LATERAL (
        SELECT i.id, i.processed_filepath FROM exam_batch_instances i
        WHERE i.destination_id = w.destination AND i.sop_instance_uid = w.uid AND i.content_digest = decode(w.digest, 'hex')
        ORDER BY i.id DESC LIMIT 1) r
    WHERE r.processed_filepath <> w.path
    ON CONFLICT (instance_id, md5(file_path)) DO UPDATE
    SET mount_point = excluded.mount_point, file_size = excluded.file_size, file_mtime_ns = excluded.file_mtime_ns,
        file_ctime_ns = excluded.file_ctime_ns, dataset_offset = excluded.dataset_offset,
        transfer_syntax_uid = excluded.transfer_syntax_uid,
        file_inode = CASE WHEN a.file_ctime_ns = excluded.file_ctime_ns AND a.file_inode IS DISTINCT FROM excluded.file_inode
                          THEN NULL ELSE excluded.file_inode END
""")


class Places:
    """Collects the files of known instances, and writes where their content lies."""

    def __init__(self, gone: Callable[[str], bool]) -> None:
        self._gone = gone
        self._moves: dict[int, Arrival] = {}
        self._aliases: dict[tuple[Key, str], Arrival] = {}
        self.back: dict[int, int] = {}
        """Instance and batch ids of instances that were CHANGED or MISSING, and have a file again."""

    def note(self, version: Version, key: Key, arrival: Arrival, *, current: bool) -> bool:
        """Note that a file has the content of a version; return whether the version has moved to it.

        It moves if it is unsent and its old path does not hold it any more. Otherwise the file is an alias.
        """
        path = to_text(arrival.path)
        unsent = version.outcome not in {Outcome.STORED, Outcome.SUPERSEDED}
        if current and version.outcome in FILE_LOST and version.id is not None:
            self.back[version.id] = version.batch_id
        same_path = version.path == path
        moves = unsent and (not version.holds or version.outcome in FILE_LOST or self._gone(from_text(version.path)))
        if version.id is None or not (same_path or moves):
            if not same_path:
                self._aliases[key, path] = arrival
                version.aliases[path] = arrival.file.mtime_ns
            return False
        self._moves[version.id] = arrival
        version.path, version.mtime_ns, version.holds = path, arrival.file.mtime_ns, True
        return not same_path

    def write(self, tx: Connection) -> None:
        """Write what was noted. What was noted of new instances is written once these have been inserted."""
        if self._moves:
            tx.execute(_MOVE, {"ids": bigints(self._moves), **columns_of(list(self._moves.values()))})
            self._moves.clear()
        if self._aliases:
            also(tx, [(arrival, destination) for ((destination, _), _), arrival in self._aliases.items()])


def also(tx: Connection, found: Sequence[tuple[Arrival, int]]) -> None:
    """Given files with the content of registered instances, and their destinations, write that it lies there too."""
    if not found:
        return
    files = [arrival for arrival, _ in found]
    tx.execute(
        _ALIAS,
        {
            "destinations": bigints(destination for _, destination in found),
            "uids": texts([a.file.sop_instance_uid for a in files]),
            "digests": texts([a.file.content_digest.hex() for a in files]),
            **columns_of(files),
        },
    )


def columns_of(arrivals: Sequence[Arrival]) -> dict[str, str]:
    """Return what is remembered of files, one list of values for each column."""
    files = [arrival.file for arrival in arrivals]
    return {
        "paths": texts([to_text(a.path) for a in arrivals]),
        "mounts": texts([None if a.mount_point is None else to_text(a.mount_point) for a in arrivals]),
        "sizes": bigints(f.size for f in files),
        "mtimes": bigints(f.mtime_ns for f in files),
        "inodes": bigints(signed(f.inode) for f in files),
        "ctimes": bigints(signed(f.ctime_ns) for f in files),
        "offsets": bigints(f.dataset_offset for f in files),
        "syntaxes": texts([f.transfer_syntax_uid for f in files]),
    }
