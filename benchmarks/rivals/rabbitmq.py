"""RabbitMQ on a node of its own: a durable classic queue, publisher confirms, manual acknowledgements."""

from __future__ import annotations

import pathlib
import shutil
import tempfile

import servers

from benchmarks.rivals.node import NodeLibrary
from benchmarks.rivals.service import Service, get_program


class RabbitMQ(NodeLibrary):
    name = "rabbitmq"
    package = "amqplib"
    in_postgres = False
    promises = (
        "At least once: a confirm means that the node has the message on its disk (it syncs the file before it), "
        "and what was not acknowledged is delivered again when its consumer's channel closes. First in, first "
        "out; dead-letter exchanges, priorities, lifetimes, topics with wildcards."
    )
    lacks = (
        "Transactions with other data, a visibility timeout (a consumer that hangs keeps its messages for half an "
        "hour), delays without a plugin, a look at messages without taking them, an archive; acknowledgements are "
        "not confirmed. A classic queue is on one node: a quorum queue, which is not measured, is replicated."
    )
    better = (
        "It pushes to consumers, who neither poll nor wait; exchanges route in any shape; flow control, clients "
        "for all languages; far more messages a second."
    )

    def install(self) -> None:
        super().install()
        program = get_program("rabbitmq-server", "rabbitmq-server")
        names = get_program("epmd", "erlang-base")
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="pgmq-rabbitmq-"))
        epmd, distribution, port = (str(servers.free_port()) for _ in range(3))
        environment = {
            "HOME": str(self.directory),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": epmd,
            "RABBITMQ_NODENAME": "bench@localhost",
            "RABBITMQ_DIST_PORT": distribution,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": port,
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": "/dev/null",
            # The program becomes the server rather than watching over it.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }
        # The names of nodes are served to this one alone.
        self.services = [Service(self.directory / "epmd", [names, "-address", "127.0.0.1", "-port", epmd])]
        server = Service(self.directory / "server", [program], **environment)
        self.services.append(server)
        try:
            server.wait(lambda: "Server startup complete" in server.read_log())
        except BaseException:
            self.close()
            raise
        self.version = f"{server.read_log().partition('Starting RabbitMQ ')[2].split()[0]} with amqplib {self.version}"
        self.dsn = f"amqp://guest:guest@127.0.0.1:{port}/"

    def processes(self) -> list[int]:
        return [service.process.pid for service in self.services]

    def close(self) -> None:
        for service in reversed(self.services):
            service.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


RIVALS = (RabbitMQ,)
