// Command gomilter is the least that a milter can do with the library of package milter, for
// BenchmarkTransaction to compare with: it makes the changes that sendas makes to mail of a
// printer, asks nothing, and logs nothing.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	protocol "github.com/d--j/go-milter"
)

const identity = "scan@contoso.com"

type filter struct {
	protocol.NoOpMilter
	from string
}

func (f *filter) Header(name, value string, _ protocol.Modifier) (*protocol.Response, error) {
	if strings.EqualFold(name, "From") {
		f.from = value
	}
	return protocol.RespContinue, nil
}

func (f *filter) EndOfMessage(m protocol.Modifier) (*protocol.Response, error) {
	name, _, ok := strings.Cut(f.from, "<")
	if !ok {
		return protocol.RespTempFail, nil
	}
	return protocol.RespAccept, errors.Join(
		m.ChangeFrom("<"+identity+">", ""),
		m.ChangeHeader(1, "From", name+"<"+identity+">"),
		m.AddHeader("Reply-To", f.from),
		m.AddHeader("X-Original-From", f.from),
	)
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gomilter /path/of/socket")
		os.Exit(64)
	}
	ln, err := net.Listen("unix", os.Args[1])
	if err == nil {
		err = serve(ln)
	}
	fmt.Fprintln(os.Stderr, "gomilter:", err)
	os.Exit(70)
}

func serve(ln net.Listener) error {
	return protocol.NewServer(
		protocol.WithMilter(func() protocol.Milter { return &filter{} }),
		protocol.WithAction(protocol.OptAddHeader|protocol.OptChangeHeader|protocol.OptChangeFrom),
		protocol.WithProtocol(protocol.OptNoConnect|protocol.OptNoHelo|protocol.OptNoData|protocol.OptNoEOH|
			protocol.OptNoBody|protocol.OptNoUnknown|protocol.OptNoMailReply|protocol.OptNoRcptReply|protocol.OptNoHeaderReply),
	).Serve(ln)
}
