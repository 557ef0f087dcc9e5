package registryetcd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// childVariable makes the test binary register at this address, and say what becomes of it, until its input ends.
const childVariable = "ROTA_TEST_CHILD"

func child() {
	c, err := connect(Options{Endpoints: []string{os.Getenv(childVariable)}, TTL: testTTL}, noEnv)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	reg, err := c.Register(context.Background(), instance("thaw", "a"))
	if err != nil {
		fmt.Println("error", err)
		return
	}
	go func() {
		bufio.NewReader(os.Stdin).ReadByte()
		c.Close()
		os.Exit(0)
	}()
	for {
		changed := reg.Changed()
		l, _, _ := c.lease.get()
		var id int64
		if l != nil {
			id = int64(l.id)
		}
		fmt.Println("state", reg.State(), reg.Instance().Incarnation, id)
		<-changed
	}
}
