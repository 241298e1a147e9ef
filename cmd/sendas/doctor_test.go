package main

import (
	"bytes"
	"testing"
)

func TestDoctorCommand(t *testing.T) {
	var out bytes.Buffer
	c := cmdDoctor(&options{stdout: &out, stderr: &out})
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs([]string{"scan@contoso.com", "erp@contoso.com"})
	if err := c.Execute(); err == nil {
		t.Error("two mailboxes are taken")
	}
	for _, flag := range []string{"postfix-config", "send-to", "json"} {
		if f := c.Flags().Lookup(flag); f == nil || f.DefValue != map[bool]string{true: "false", false: ""}[flag == "json"] {
			t.Errorf("flag --%s is %+v", flag, f)
		}
	}
}
