package telemetry

import (
	"os"
	"sync"
)

// File is a log file that can be opened anew, after something has moved it away. It is safe for concurrent use.
type File struct {
	path string

	mu sync.Mutex
	f  *os.File
}

// OpenFile opens the file at path to append to it, and makes it if need be.
func OpenFile(path string) (*File, error) {
	f, err := appendTo(path)
	if err != nil {
		return nil, err
	}
	return &File{path: path, f: f}, nil
}

func appendTo(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
}

// Reopen opens the file at the path anew. After an error the old one stays.
func (l *File) Reopen() error {
	f, err := appendTo(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.f
	l.f = f
	l.mu.Unlock()
	return old.Close()
}

// Write implements io.Writer.
func (l *File) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Write(b)
}

// Close implements io.Closer.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

// Sync implements zapcore.WriteSyncer.
func (l *File) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Sync()
}
