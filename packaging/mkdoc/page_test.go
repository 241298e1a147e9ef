package main

import "testing"

func TestRelink(t *testing.T) {
	for _, tc := range []struct{ source, text, want string }{
		{"README.md", "[a](docs/setup.md#1-install)", "[a](docs/setup.md#1-install)"},
		{"README.md", "[a](contrib/grafana/README.md)", "[a](../../sendas/grafana/README.md)"},
		{"README.md", "[a](packaging/sendas.yaml) and [b](LICENSE)",
			"[a](../../sendas/sendas.yaml) and [b](https://github.com/sendas/sendas/blob/main/LICENSE)"},
		{"docs/recipes/sap.md", "[a](../setup.md) [b](cron.md) [c](#below)", "[a](../setup.md) [b](cron.md) [c](#below)"},
		{"docs/tour.md", "[a](../milter/queue)", "[a](https://github.com/sendas/sendas/tree/main/milter/queue)"},
		{"docs/metrics.md", "[a](../contrib/exosim/README.md#faults)", "[a](https://github.com/sendas/sendas/blob/main/contrib/exosim/README.md#faults)"},
		{"contrib/prometheus/README.md", "[a](../../docs/metrics.md) [b](sendas.test.yml)",
			"[a](../../doc/sendas/docs/metrics.md) [b](https://github.com/sendas/sendas/blob/main/contrib/prometheus/sendas.test.yml)"},
		{"docs/setup.md", "[a](https://learn.microsoft.com/x) <mailto:a@b> f(x)", "[a](https://learn.microsoft.com/x) <mailto:a@b> f(x)"},
	} {
		if got := relink(tc.source, tc.text); got != tc.want {
			t.Errorf("relink(%s, %s) = %s, want %s", tc.source, tc.text, got, tc.want)
		}
	}
}
