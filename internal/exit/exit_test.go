package exit

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

func TestTell(t *testing.T) {
	wrong := Errorf(Config, `run "sendas check"`, "opening %q: %w", "/x", fs.ErrNotExist)
	for _, tc := range []struct {
		err  error
		code int
		want string
	}{
		{wrong, Config, "sendas: error: opening \"/x\": file does not exist\nsendas: hint: run \"sendas check\"\n"},
		{fmt.Errorf("starting: %w", wrong), Config, "sendas: error: starting: opening \"/x\": file does not exist\nsendas: hint: run \"sendas check\"\n"},
		{Errorf(TempFail, "", "interrupted"), TempFail, "sendas: error: interrupted\n"},
		{errors.New(`unknown flag: --colour`), Usage, "sendas: error: unknown flag: --colour\n"},
	} {
		var b strings.Builder
		if code := Tell(&b, tc.err); code != tc.code || b.String() != tc.want {
			t.Errorf("Tell(%v) = %d and %q, want %d and %q", tc.err, code, b.String(), tc.code, tc.want)
		}
	}
	if !errors.Is(wrong, fs.ErrNotExist) {
		t.Errorf("%v hides what it wraps", wrong)
	}
}
