package authv1

// How the server and a plugin process recognise each other. The handshake is that of hashicorp/go-plugin with gRPC and automatic
// mutual TLS; README.md of package authplugin describes it for other languages.
const (
	// ProtocolVersion is the version of this protocol, the second field of the handshake line.
	ProtocolVersion = 1
	// CookieKey and CookieValue are an environment variable that tells a plugin that the server started it, and not a person. It is
	// a courtesy and protects nothing.
	CookieKey   = "KEYFIRE_AUTH_PLUGIN"
	CookieValue = "b6f0f7d0a3d54e6f9b0c"
	// ServiceName is what the health service of a plugin is asked about.
	ServiceName = "plugin"
)

// Bounds of messages. The server enforces them; a plugin that exceeds one has failed to decide.
const (
	MaxRequest       = 16 << 20 // bytes of an AuthenticateRequest; all but a few KiB of it is the body, where it is granted
	MaxResponse      = 1 << 20  // bytes of any response
	MaxSubject       = 255      // characters
	MaxReason        = 255
	MaxVersion       = 64
	MaxScopes        = 64
	MaxScope         = 255
	MaxAttributes    = 32
	MaxAttribute     = 1024 // bytes of a value
	MaxAttributeName = 64
	MaxDenialTTL     = 60 // seconds
)
