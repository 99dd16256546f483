package workflow

import "github.com/keyfire/keyfire/core"

// webhook reads how the workflow's webhooks are signed.
func (d *decoder) webhook(v *value, pointer string) *core.WebhookSpec {
	spec := &core.WebhookSpec{}
	d.object(v, pointer, fields{
		what:     "webhook",
		required: []string{"verify", "secret"},
		read: map[string]reader{
			"verify": func(v *value, p string) {
				if spec.Verify = d.text(v, p); v.kind == text && spec.Verify != core.VerifyStandardWebhooks {
					d.report(p, v.at, "verify is "+core.VerifyStandardWebhooks+"; the hmac auth plugin takes other schemes, and then webhook is left out")
				}
			},
			"secret": func(v *value, p string) {
				if spec.Secret = d.text(v, p); v.kind == text && !core.ValidSecretName(spec.Secret) {
					d.report(p, v.at, "name the secret that holds the signing secret; a name has an upper-case letter, then upper-case letters, digits and underscores, at most 64")
				}
			},
		},
	})
	return spec
}
