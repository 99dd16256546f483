"""An auth plugin that admits the tokens of a file of digests, in Python."""

import hashlib
import hmac

import auth_pb2 as pb
from keyfire_authplugin import Denied, NotMine, Plugin, serve


class Tokens(Plugin):
    def validate(self, config):
        problems = ["%s is not a setting" % name for name in config if name != "users"]
        users = config.get("users", {})
        if not isinstance(users, dict) or not all(isinstance(v, str) for v in users.values()):
            problems.append("users must map the SHA-256 of a token, in hex, to the user's name")
        return problems

    def configure(self, config):
        self.users = config.get("users", {})

    def authenticate(self, request):
        if not request.credential.startswith("py_"):
            raise NotMine()
        digest = hashlib.sha256(request.credential.encode()).hexdigest()
        for known, user in self.users.items():
            if hmac.compare_digest(known, digest):
                return pb.Principal(subject=user, scopes=["run:*"])
        raise Denied("unknown token")


serve(Tokens())
