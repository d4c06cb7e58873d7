"""The flags of `service create` and `service update`, with the readers of their values."""

from __future__ import annotations

from manager.cli import parse_values as values
from manager.cli.commands.common import DETACH, QUIET_PROGRESS
from manager.cli.durations import parse_duration, parse_positive_duration
from manager.cli.flags import Flag, decimal, process_count, signed, unsigned
from manager.cli.keyvalues import label
from manager.cli.parse_mounts import parse_mount
from manager.cli.parse_ports import parse_publish
from manager.cli.units import parse_bytes, parse_nano_cpus
from proto.errors import InvalidError

_DURATION = "(ns|us|ms|s|m|h)"


def _policy(name: str, noun: str, plural: str) -> tuple[Flag, ...]:
    actions = '"pause", "continue", "rollback"' if name == "update" else '"pause", "continue"'
    verb = "updated" if name == "update" else "rolled back"
    at_once = "update" if name == "update" else "roll back"
    article = "an update" if name == "update" else "a rollback"
    return (
        Flag(
            f"{name}-delay", "duration", f"Delay between {plural} {_DURATION}", "", parse_duration
        ),
        Flag(f"{name}-failure-action", "string", f"Action on {noun} failure ({actions})"),
        Flag(
            f"{name}-max-failure-ratio",
            "float",
            f"Failure rate to tolerate during {article}",
            "",
            decimal,
        ),
        Flag(
            f"{name}-monitor",
            "duration",
            f"Duration after each task {noun} to monitor for failure {_DURATION}",
            "",
            parse_duration,
        ),
        Flag(f"{name}-order", "string", f'{noun.title()} order ("start-first", "stop-first")'),
        Flag(
            f"{name}-parallelism",
            "uint",
            f"Maximum number of tasks {verb} simultaneously (0 to {at_once} all at once)",
            "",
            unsigned,
        ),
    )


def credential_spec(text: str) -> str:
    """Refuse a credential spec: it is for Windows nodes, of which there are none."""
    raise InvalidError(f"credential spec '{text}': Windows service accounts are not supported")


_HEALTH = "(ms|s|m|h)"

COMMON: tuple[Flag, ...] = (
    DETACH,
    QUIET_PROGRESS,
    Flag("cap-add", "list", "Add Linux capabilities", many=True),
    Flag("cap-drop", "list", "Drop Linux capabilities", many=True),
    Flag(
        "credential-spec",
        "credential-spec",
        "Credential spec for managed service account (Windows only)",
        "",
        credential_spec,
    ),
    Flag("endpoint-mode", "string", "Endpoint mode (vip or dnsrr)"),
    Flag(
        "entrypoint",
        "command",
        "Overwrite the default ENTRYPOINT of the image",
        "",
        values.command_words,
    ),
    Flag("health-cmd", "string", "Command to run to check health"),
    *(
        Flag(f"health-{name}", "duration", f"{text} {_HEALTH}", "", parse_positive_duration)
        for name, text in (
            ("interval", "Time between running the check"),
            ("start-interval", "Time between running the check during the start period"),
            (
                "start-period",
                "Start period for the container before retries count towards unstable",
            ),
            ("timeout", "Maximum time to allow one check to run"),
        )
    ),
    Flag("health-retries", "int", "Consecutive failures needed to report unhealthy", "", signed),
    Flag("hostname", "string", "Container hostname"),
    Flag(
        "init",
        "",
        "Use an init inside each service container to forward signals and reap processes",
    ),
    Flag("isolation", "string", "Service container isolation mode"),
    Flag("limit-cpu", "decimal", "Limit CPUs", "", parse_nano_cpus),
    Flag("limit-memory", "bytes", "Limit Memory", "", parse_bytes),
    Flag(
        "limit-pids",
        "int",
        "Limit maximum number of processes (default that of the node, 0 = unlimited)",
        "",
        process_count,
    ),
    Flag("log-driver", "string", "Logging driver for service"),
    Flag("log-opt", "list", "Logging driver options", "", values.environment, many=True),
    Flag(
        "max-concurrent",
        "uint",
        "Number of job tasks to run concurrently (default equal to --replicas)",
        "",
        unsigned,
    ),
    Flag("no-healthcheck", "", "Disable any container-specified HEALTHCHECK"),
    Flag(
        "no-resolve-image",
        "",
        "Do not query the registry to resolve image digest and supported platforms",
    ),
    Flag("oom-score-adj", "int", "Tune host's OOM preferences (-1000 to 1000)", "", signed),
    Flag("read-only", "", "Mount the container's root filesystem as read only"),
    Flag("replicas", "uint", "Number of tasks", "", unsigned),
    Flag(
        "replicas-max-per-node",
        "uint",
        "Maximum number of tasks per node (default 0 = unlimited)",
        "",
        unsigned,
    ),
    Flag("reserve-cpu", "decimal", "Reserve CPUs", "", parse_nano_cpus),
    Flag("reserve-memory", "bytes", "Reserve Memory", "", parse_bytes),
    Flag(
        "restart-condition",
        "string",
        'Restart when condition is met ("none", "on-failure", "any")',
    ),
    Flag(
        "restart-delay",
        "duration",
        f"Delay between restart attempts {_DURATION}",
        "",
        parse_duration,
    ),
    Flag(
        "restart-max-attempts",
        "uint",
        "Maximum number of restarts before giving up",
        "",
        unsigned,
    ),
    Flag(
        "restart-window",
        "duration",
        f"Window used to evaluate the restart policy {_DURATION}",
        "",
        parse_duration,
    ),
    *_policy("rollback", "rollback", "task rollbacks"),
    *_policy("update", "update", "updates"),
    Flag(
        "stop-grace-period",
        "duration",
        f"Time to wait before force killing a container {_DURATION}",
        "",
        parse_duration,
    ),
    Flag("stop-signal", "string", "Signal to stop the container"),
    Flag("tty", "", "Allocate a pseudo-TTY", "t"),
    Flag("user", "string", "Username or UID (format: <name|uid>[:<group|gid>])", "u"),
    Flag("with-registry-auth", "", "Send registry authentication details to swarm agents"),
    Flag("workdir", "string", "Working directory inside the container", "w"),
)

CREATE: tuple[Flag, ...] = (
    *COMMON,
    Flag(
        "config",
        "config",
        "Specify configurations to expose to the service",
        "",
        values.config,
        many=True,
    ),
    Flag("constraint", "list", "Placement constraints", many=True),
    Flag("container-label", "list", "Container labels", "", label, many=True),
    Flag("dns", "list", "Set custom DNS servers", "", values.address, many=True),
    Flag("dns-option", "list", "Set DNS options", many=True),
    Flag("dns-search", "list", "Set custom DNS search domains", "", values.domain, many=True),
    Flag("env", "list", "Set environment variables", "e", values.environment, many=True),
    Flag("env-file", "list", "Read in a file of environment variables", many=True),
    Flag("generic-resource", "list", "User defined resources", many=True),
    Flag(
        "group",
        "list",
        "Set one or more supplementary user groups for the container",
        many=True,
    ),
    Flag(
        "host",
        "list",
        "Set one or more custom host-to-IP mappings (host:ip)",
        "",
        values.extra_host,
        many=True,
    ),
    Flag("label", "list", "Service labels", "l", label, many=True),
    Flag(
        "mode",
        "string",
        'Service mode ("replicated", "global", "replicated-job", "global-job") '
        '(default "replicated")',
    ),
    Flag("mount", "mount", "Attach a filesystem mount to the service", "", parse_mount, many=True),
    Flag("name", "string", "Service name"),
    Flag("network", "network", "Network attachments", "", values.network, many=True),
    Flag(
        "placement-pref",
        "pref",
        "Add a placement preference",
        "",
        values.placement_preference,
        many=True,
    ),
    Flag("publish", "port", "Publish a port as a node port", "p", parse_publish, many=True),
    Flag(
        "secret", "secret", "Specify secrets to expose to the service", "", values.secret, many=True
    ),
    Flag("sysctl", "list", "Sysctl options", many=True),
    Flag("ulimit", "ulimit", "Ulimit options", "", values.ulimit, many=True),
)


def _add(flag: str, kind: str, text: str, **parse: object) -> Flag:
    base = Flag(f"{flag}-add", kind, text, many=True)
    return base._replace(**parse)  # type: ignore[arg-type] # only `parse` is ever given


def _rm(flag: str, text: str, **parse: object) -> Flag:
    base = Flag(f"{flag}-rm", "list", text, many=True)
    return base._replace(**parse)  # type: ignore[arg-type] # only `parse` is ever given


UPDATE: tuple[Flag, ...] = (
    *COMMON,
    Flag("args", "command", "Service command args", "", values.command_words),
    Flag("force", "", "Force update even if no changes require it"),
    Flag("image", "string", "Service image tag"),
    Flag("rollback", "", "Rollback to previous specification"),
    _add("config", "config", "Add or update a config file on a service", parse=values.config),
    _rm("config", "Remove a configuration file"),
    _add("constraint", "list", "Add or update a placement constraint"),
    _rm("constraint", "Remove a constraint"),
    _add("container-label", "list", "Add or update a container label", parse=label),
    _rm("container-label", "Remove a container label by its key"),
    _add("dns", "list", "Add or update a custom DNS server", parse=values.address),
    _rm("dns", "Remove a custom DNS server"),
    _add("dns-option", "list", "Add or update a DNS option"),
    _rm("dns-option", "Remove a DNS option"),
    _add("dns-search", "list", "Add or update a custom DNS search domain", parse=values.domain),
    _rm("dns-search", "Remove a DNS search domain"),
    _add("env", "list", "Add or update an environment variable", parse=values.environment),
    _rm("env", "Remove an environment variable"),
    _add("generic-resource", "list", "Add a Generic resource"),
    _rm("generic-resource", "Remove a Generic resource"),
    _add("group", "list", "Add an additional supplementary user group to the container"),
    _rm("group", "Remove a previously added supplementary user group from the container"),
    _add("host", "list", 'Add a custom host-to-IP mapping ("host:ip")', parse=values.extra_host),
    _rm("host", 'Remove a custom host-to-IP mapping ("host:ip")'),
    _add("label", "list", "Add or update a service label", parse=label),
    _rm("label", "Remove a label by its key"),
    _add("mount", "mount", "Add or update a mount on a service", parse=parse_mount),
    _rm("mount", "Remove a mount by its target path"),
    _add("network", "network", "Add a network", parse=values.network),
    _rm("network", "Remove a network"),
    _add("placement-pref", "pref", "Add a placement preference", parse=values.placement_preference),
    _rm("placement-pref", "Remove a placement preference", parse=values.placement_preference),
    _add("publish", "port", "Add or update a published port", parse=parse_publish),
    _rm("publish", "Remove a published port by its target port", parse=parse_publish),
    _add("secret", "secret", "Add or update a secret on a service", parse=values.secret),
    _rm("secret", "Remove a secret"),
    _add("sysctl", "list", "Add or update a Sysctl option"),
    _rm("sysctl", "Remove a Sysctl option"),
    _add("ulimit", "ulimit", "Add or update a ulimit option", parse=values.ulimit),
    _rm("ulimit", "Remove a ulimit option"),
)
