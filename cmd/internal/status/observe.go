package status

import (
	"fmt"

	"github.com/sendas/sendas/milter"
	"github.com/sendas/sendas/policy"
)

// observeWords say what a milter does that only looks.
const observeWords = "observes: nothing is changed or refused; what is counted is what would have become of mail"

// observes reports whether the milter that runs only looks at mail. The token service has nothing
// to do then.
func (v *view) observes() bool { return v.milter != nil && observed(v.milter.Status) }

func observed(s *milter.Status) bool { return s.Mode == policy.Observe }

// idleToken says of a token service that does not answer that nobody needs it; "" where that is not
// so.
func (v *view) idleToken() string {
	if v.tokenErr == nil || !v.observes() {
		return ""
	}
	return fmt.Sprintf("not needed while the milter observes (at %s: %v)", v.tokenAt, v.tokenErr)
}

// tokenTrouble is why the token service does not answer, where somebody needs it.
func (v *view) tokenTrouble() error {
	if v.idleToken() != "" {
		return nil
	}
	return v.tokenErr
}
