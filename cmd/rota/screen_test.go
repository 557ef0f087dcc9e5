package main

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

func TestScreen(t *testing.T) {
	fill := func(w io.Writer) {
		fmt.Fprintln(w, "INSTANCE\tSTATE\tWHY")
		fmt.Fprintln(w, "a\tready\t")
		fmt.Fprintln(w, "bärbel\tdown\tit  ready  or not, says nothing")
	}
	for name, c := range map[string]struct {
		screen
		want string
	}{
		"pipe":   {screen{}, "INSTANCE  STATE  WHY\na         ready\nbärbel    down   it  ready  or not, says nothing\n"},
		"narrow": {screen{columns: 24}, "INSTANCE  STATE  WHY\na         ready\nbärbel    down   it  re…\n"},
		"colour": {screen{colour: true}, "\x1b[2mINSTANCE  STATE  WHY\x1b[0m\na         \x1b[32mready\x1b[0m\nbärbel    \x1b[31mdown\x1b[0m   it  ready  or not, says nothing\n"},
	} {
		var out bytes.Buffer
		if err := c.table(&out, fill); err != nil || out.String() != c.want {
			t.Errorf("%s: %v\n%q, want\n%q", name, err, out.String(), c.want)
		}
	}
	if s := screenOf(io.Discard); s != (screen{}) {
		t.Errorf("no terminal is %+v", s)
	}
}
