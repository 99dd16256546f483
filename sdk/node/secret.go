package node

// Secret returns the value of a secret of the account that the workflow grants by name:
//
//	grants: {secrets: [CRM_TOKEN]}
//
// The host takes a value that was read out of the node's output, log and error, as it is and in the encodings that it is sent in. An error is ErrDenied, or ErrNotFound when
// the secret is granted but not set.
func (c *Context) Secret(name string) (string, error) {
	value, code := c.host.Secret(name)
	if err := hostError(c.host, code); err != nil {
		return "", err
	}
	return value, nil
}
