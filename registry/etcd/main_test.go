package registryetcd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"testing"

	"go.uber.org/goleak"

	"github.com/rota-lb/rota/registry"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if n, err := strconv.Atoi(os.Getenv(childrenVariable)); err == nil {
			children(n)
			return
		}
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// childVariable makes the test binary register at this address, and say what becomes of it, until its input ends.
const childVariable = "ROTA_TEST_CHILD"

// childrenVariable makes it register so many instances of one service, each with a client of its own, instead.
const childrenVariable = "ROTA_TEST_CHILDREN"

func children(n int) {
	var regs []registry.Registration
	for i := range n {
		c, err := connect(Options{Endpoints: []string{os.Getenv(childVariable)}, TTL: testTTL}, noEnv)
		if err != nil {
			fmt.Println("error", err)
			return
		}
		defer c.Close()
		reg, err := c.Register(context.Background(), instance("fault", strconv.Itoa(i)))
		if err != nil {
			fmt.Println("error", err)
			return
		}
		regs = append(regs, reg)
	}
	for _, reg := range regs {
		if err := registry.WaitRegistered(context.Background(), reg); err != nil {
			fmt.Println("error", err)
			return
		}
	}
	fmt.Println("registered")
	bufio.NewReader(os.Stdin).ReadByte()
}

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
