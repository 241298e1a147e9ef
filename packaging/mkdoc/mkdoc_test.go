package main

import (
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC)

const trailer = " -- " + Maintainer + "  "

func TestChangelog(t *testing.T) {
	for _, tc := range []struct{ name, md, want string }{
		{"not released", "# Changes\n\nFor administrators.\n\n## Unreleased\n\n- One.\n- Two\n  goes on.\n",
			"sendas (1.2.0-1) unstable; urgency=medium\n\n  * One.\n  * Two goes on.\n\n" + trailer + "Thu, 24 Dec 2026 18:00:00 +0000\n"},
		{"released", "## 1.1.0 (2026-12-01)\n\n- One.\n\n## 1.0.0 (2026-11-01)\n- First.\n",
			"sendas (1.1.0) unstable; urgency=medium\n\n  * One.\n\n" + trailer + "Tue, 01 Dec 2026 00:00:00 +0000\n\n" +
				"sendas (1.0.0) unstable; urgency=medium\n\n  * First.\n\n" + trailer + "Sun, 01 Nov 2026 00:00:00 +0000\n"},
		{"nothing new", "## Unreleased\n\n## 1.0.0 (2026-11-01)\n\n- First.\n",
			"sendas (1.0.0) unstable; urgency=medium\n\n  * First.\n\n" + trailer + "Sun, 01 Nov 2026 00:00:00 +0000\n"},
		{"a long line", "## Unreleased\n- " + strings.Repeat("word ", 17) + "\n",
			"sendas (1.2.0-1) unstable; urgency=medium\n\n  * " + strings.TrimSpace(strings.Repeat("word ", 15)) + "\n    word word\n\n" + trailer + "Thu, 24 Dec 2026 18:00:00 +0000\n"},
	} {
		if got, err := changelog(tc.md, "1.2.0-1", now); got != tc.want || err != nil {
			t.Errorf("%s: changelog is\n%s, %v; want\n%s", tc.name, got, err, tc.want)
		}
	}
}

func TestChangelogRefuses(t *testing.T) {
	for _, tc := range []struct{ md, want string }{
		{"# Changes\n", "the changelog has no entries"},
		{"## Unreleased\n- a\n## 1.0\n- b\n", `"## 1.0" is not of the form "## 1.2.0 (2026-12-01)"`},
		{"## 1.0 (2026-13-01)\n- b\n", "month out of range"},
	} {
		if _, err := changelog(tc.md, "1.2.0-1", now); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("changelog(%q): %v, want %s", tc.md, err, tc.want)
		}
	}
}

func TestLicence(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"                                 Apache License\n                           Version 2.0, January 2004", "Apache-2.0"},
		{"Permission is hereby granted, free of\ncharge, to any person", "Expat"},
		{"Redistribution and use in source and binary forms\n* Neither the name of Google", "BSD-3-Clause"},
		{"Redistribution and use in source and binary forms, with or without", "BSD-2-Clause"},
		{"GNU AFFERO GENERAL PUBLIC LICENSE", ""},
	} {
		if got := licence(tc.text); got != tc.want {
			t.Errorf("licence(%.30q) = %q, want %q", tc.text, got, tc.want)
		}
	}
}

func TestOwners(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"Copyright (c) 2017 Jo Doe\nCopyright © 2019 Max Mustermann. All rights reserved.\n", "2017 Jo Doe\n 2019 Max Mustermann."},
		{"   copyright license to reproduce\n", "the authors of example.com/m"},
	} {
		if got := owners("example.com/m", tc.text); got != tc.want {
			t.Errorf("owners(%q) = %q, want %q", tc.text, got, tc.want)
		}
	}
}

// All that the program is linked with has a licence that we know.
func TestCopyrightOfTheProgram(t *testing.T) {
	var b strings.Builder
	if err := run([]string{"copyright", "github.com/sendas/sendas/cmd/sendas"}, nil, &b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Files: *\n", "Files: vendor/go/*\nCopyright: 2009 The Go Authors", "Files: vendor/github.com/spf13/cobra/*\n", "Files: vendor/go.etcd.io/bbolt/*\n"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the copyright lacks %q", want)
		}
	}
}
