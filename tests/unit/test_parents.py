from __future__ import annotations

from xaps_watch.parents import Parents

DIRECTORY, OTHER = 1, 2


def test_a_name_leads_to_its_mailbox() -> None:
    parents: Parents[str] = Parents()
    parents.add(DIRECTORY, b".Work", "/alice/.Work")
    parents.add(OTHER, b".Work", "/bob/.Work")
    assert parents.named([(OTHER, b".Work"), (DIRECTORY, b"dovecot-uidlist"), (3, b".Work")]) == ["/bob/.Work"]


def test_a_missing_name_leads_to_all_below_it() -> None:
    parents: Parents[str] = Parents()
    for path in ("/mnt/a", "/mnt/b", "/mnt/b"):
        parents.add(DIRECTORY, b"mnt", path)
    assert sorted(parents.named([(DIRECTORY, b"mnt")])) == ["/mnt/a", "/mnt/b"]
    parents.discard(DIRECTORY, b"mnt", "/mnt/a")
    assert parents.pop(DIRECTORY) == ["/mnt/b"]
    assert DIRECTORY not in parents


def test_a_directory_is_of_use_as_long_as_a_name_in_it_is() -> None:
    parents: Parents[str] = Parents()
    for path in ("/a", "/b", "/c"):
        parents.add(DIRECTORY, path[1:].encode(), path)
    parents.add(DIRECTORY, b"a", "/alias/a")
    for path in ("/a", "/alias/a", "/b"):
        parents.discard(DIRECTORY, path[-1:].encode(), path)
        assert parents.any() == DIRECTORY
    parents.discard(DIRECTORY, b"c", "/elsewhere/c")  # another mailbox's
    assert DIRECTORY in parents
    parents.discard(DIRECTORY, b"c", "/c")
    assert DIRECTORY not in parents
    assert parents.any() is None
