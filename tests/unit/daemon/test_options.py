"""What the command line of `swarmd` becomes."""

from manager.daemon.main import parse_options


def test_reads_ask_a_majority_unless_leases_are_asked_for():
    """The safe way is the default; the option says what it risks."""
    config, _ = parse_options([])
    assert not config.has_lease_reads
    config, _ = parse_options(["--lease-reads"])
    assert config.has_lease_reads
