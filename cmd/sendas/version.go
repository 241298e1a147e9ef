package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// revision is set by the linker, as version is, where packages are built.
var revision string

// buildInfo says what program this is, for reports of trouble.
type buildInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`       // of the source, by version control; "unknown" for a build outside of it
	Time     string `json:"time,omitempty"` // of that revision, RFC 3339
	Modified bool   `json:"modified"`       // whether the source was changed after it
	Go       string `json:"go"`             // go1.26.8
	Platform string `json:"platform"`       // linux/amd64
}

// readBuild returns what the linker and the compiler have noted.
func readBuild() buildInfo {
	b := buildInfo{Version: version, Revision: "unknown", Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if revision != "" {
		b.Revision = revision
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func cmdVersion(o *options) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Print version, revision and platform",
		Long: `version prints which sendas this is: its version, the revision of its source, the Go that it was
built with, and the platform that it was built for. Give this with a report of trouble.`,
		Example: "  sendas version\n  sendas version --json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			b := readBuild()
			if asJSON {
				e := json.NewEncoder(o.stdout)
				e.SetIndent("", "  ")
				return e.Encode(b)
			}
			revision := b.Revision
			if b.Modified {
				revision += " (modified)"
			}
			fmt.Fprintf(o.stdout, "sendas %s\nrevision %s\n%s %s\n", b.Version, revision, b.Go, b.Platform)
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
