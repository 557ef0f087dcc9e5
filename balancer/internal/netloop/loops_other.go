//go:build !linux

package netloop

import "errors"

const haveEpoll = false

func newLoops(Options) (Engine, error) { return nil, errors.ErrUnsupported }
