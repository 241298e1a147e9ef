// Package packaging holds what the packages for Debian and RPM are made of.
package packaging

import _ "embed"

// Sample is the configuration as it is installed: every setting with its explanation, commented
// out at its default. The manual page sendas.yaml(5) is made of it.
//
//go:embed sendas.yaml
var Sample string
