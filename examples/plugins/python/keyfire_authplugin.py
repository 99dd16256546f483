"""Everything a Keyfire auth plugin in Python needs besides its own logic: handshake, mutual TLS, and an end when the server ends.

sdk/authplugin/README.md, section "In another language", says what this file does and why. A plugin implements authenticate, and may
implement validate and configure; serve() makes a process of it.
"""

import base64
import datetime
import json
import os
import sys
import tempfile
import threading
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import auth_pb2 as pb

PROTOCOL_VERSION = 1
COOKIE = ("KEYFIRE_AUTH_PLUGIN", "b6f0f7d0a3d54e6f9b0c")


class NotMine(Exception):
    """The credential is of another kind; the server asks the next backend."""


class Denied(Exception):
    """The credential is refused for good. The caller reads the reason, so it must not help a guesser."""

    def __init__(self, reason, ttl_seconds=0):
        super().__init__(reason)
        self.reason, self.ttl_seconds = reason, ttl_seconds


class Plugin:
    """What a plugin overrides. authenticate is called from several threads at once."""

    version = "1.0.0"

    def validate(self, config):
        """Returns a list of problems with config, a dict, without acting on it."""
        return ["this plugin has no configuration; leave it out"] if config else []

    def configure(self, config):
        """Takes config over. Called once, before authenticate."""

    def authenticate(self, request):
        """Returns a pb.Principal, or raises NotMine or Denied. Any other exception means "cannot decide"."""
        raise NotImplementedError


class _Service:
    def __init__(self, plugin):
        self.plugin = plugin

    def _problems(self, raw):
        try:
            config = json.loads(raw)
        except ValueError:
            config = None
        if not isinstance(config, dict):
            return None, ["the configuration must be one JSON object"]
        return config, self.plugin.validate(config)

    def describe(self, _request, _context):
        return pb.DescribeResponse(version=self.plugin.version)

    def validate(self, request, _context):
        return pb.ValidateResponse(problems=self._problems(request.config_json)[1])

    def configure(self, request, _context):
        config, problems = self._problems(request.config_json)
        if not problems:
            self.plugin.configure(config)
        return pb.ConfigureResponse(problems=problems)

    def authenticate(self, request, context):
        try:
            return pb.AuthenticateResponse(allow=self.plugin.authenticate(request))
        except NotMine:
            return pb.AuthenticateResponse(not_mine=pb.NotMine())
        except Denied as d:
            return pb.AuthenticateResponse(deny=pb.Denial(reason=d.reason, ttl_seconds=d.ttl_seconds))
        except Exception as e:  # The text of an exception may hold the credential; its type does not.
            context.abort(grpc.StatusCode.UNAVAILABLE, "cannot decide: " + type(e).__name__)


def _certificate():
    """Returns a key and a self-signed certificate for this one process, both in PEM, and the certificate in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.utcnow()
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return (
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        certificate.public_bytes(pem),
        certificate.public_bytes(serialization.Encoding.DER),
    )


def _exit_with_server():
    """Ends the process once standard input ends: the server holds its other end and never writes to it."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def serve(plugin):
    """Makes the running process the plugin. Does not return before the server asks for it."""
    if os.environ.get(COOKIE[0]) != COOKIE[1]:
        sys.exit("this program is a Keyfire auth plugin and cannot be run by itself")
    threading.Thread(target=_exit_with_server, daemon=True).start()

    service, stop = _Service(plugin), threading.Event()

    def method(function, request, response):
        return grpc.unary_unary_rpc_method_handler(function, request.FromString, response.SerializeToString)

    def raw(function):  # these two messages are so small that their bytes are written out
        return grpc.unary_unary_rpc_method_handler(function)

    def shutdown(_request, _context):
        stop.set()
        return b""

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32), options=[("grpc.max_receive_message_length", 16 << 20)])
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler("keyfire.auth.v1.AuthPlugin", {
            "Describe": method(service.describe, pb.DescribeRequest, pb.DescribeResponse),
            "Validate": method(service.validate, pb.ValidateRequest, pb.ValidateResponse),
            "Configure": method(service.configure, pb.ConfigureRequest, pb.ConfigureResponse),
            "Authenticate": method(service.authenticate, pb.AuthenticateRequest, pb.AuthenticateResponse),
        }),
        grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": raw(lambda _r, _c: b"\x08\x01")}),  # SERVING
        grpc.method_handlers_generic_handler("plugin.GRPCController", {"Shutdown": raw(shutdown)}),
    ))
    key, certificate, der = _certificate()
    credentials = grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=os.environ["PLUGIN_CLIENT_CERT"].encode(), require_client_auth=True)
    directory = os.environ.get("PLUGIN_UNIX_SOCKET_DIR") or tempfile.mkdtemp()
    socket = os.path.join(directory, "plugin.sock")
    if server.add_secure_port("unix:" + socket, credentials) == 0:
        sys.exit("cannot listen on " + socket)
    server.start()
    print("1|%d|unix|%s|grpc|%s" % (PROTOCOL_VERSION, socket, base64.b64encode(der).decode().rstrip("=")), flush=True)
    stop.wait()
    server.stop(grace=1).wait()
