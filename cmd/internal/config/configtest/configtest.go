// Package configtest has configurations for the tests of other packages.
package configtest

import (
	"os"
	"path/filepath"
	"testing"
)

// SmallConfig is a configuration with two mailboxes and one client.
const SmallConfig = `tenant:
  id: contoso.onmicrosoft.com
  domains: [contoso.com]
credentials:
  relay-app:
    flow: client_credentials
    client_id: 5f2c0d3e-0000-4000-8000-000000000001
    client_secret_file: relay-app.secret
notices: scan@contoso.com
mailboxes:
  - {address: scan@contoso.com, credential: relay-app, send_as: [office@contoso.com]}
  - {address: erp@contoso.com, credential: relay-app}
clients:
  - {name: printers, networks: [10.2.0.0/16], from: scan@contoso.com}
`

// RoutesConfig adds a connector and a direct route.
const RoutesConfig = `routes:
  - {name: site, type: connector, endpoint: contoso-com.mail.protection.outlook.com, addresses: [203.0.113.7]}
`

// WriteFile makes a file with the folders above it, and returns its path.
func WriteFile(t *testing.T, path, content string, mode os.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}
