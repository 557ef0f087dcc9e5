package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
)

// Every configuration that is shipped is a good one.
func TestShippedConfigurations(t *testing.T) {
	files, err := filepath.Glob("../../examples/config/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	for _, f := range append(files, "../../deploy/debian/rota.yaml", "../../config/rota.example.yaml") {
		if status, _, errs := command(t, "check", f); status != 0 {
			t.Errorf("%s: %s", f, errs)
		}
	}
}

// The image runs as nobody in particular, from what is there, and says how it is.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile("../../deploy/docker/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, last, _ := strings.Cut(string(text), "FROM scratch")
	for name, pattern := range map[string]string{
		"a user that is not root": `(?m)^USER [1-9]\d+:[1-9]\d+$`, "a health check": `(?m)^HEALTHCHECK .*CMD \["/usr/bin/rota", "healthcheck"\]$`,
		"an entry point": `(?m)^ENTRYPOINT \["/usr/bin/rota"\]$`,
	} {
		if !regexp.MustCompile(pattern).MatchString(last) {
			t.Errorf("there is no %s", name)
		}
	}
	if !strings.Contains(string(text), "CGO_ENABLED=0") {
		t.Error("the binary is not static")
	}
	for _, m := range regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(string(text), -1) {
		if m[1] != "scratch" && !regexp.MustCompile(`:\d`).MatchString(m[1]) {
			t.Errorf("%s has no version", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^COPY ([^-\n].*) \S+$`).FindAllStringSubmatch(string(text), -1) {
		for _, f := range strings.Fields(m[1]) {
			if _, err := os.Stat(filepath.Join("../..", f)); err != nil {
				t.Error(err)
			}
		}
	}
	for _, m := range regexp.MustCompile(`\./(cmd|examples)/\S+`).FindAllString(string(text), -1) {
		if _, err := os.Stat(filepath.Join("../..", m)); err != nil {
			t.Error(err)
		}
	}
}

// The services of the compose file wait for what they need, and ask for what rota knows.
func TestCompose(t *testing.T) {
	type service struct {
		Image, Build any
		Command      []string
		Entrypoint   []string
		Depends      map[string]struct{ Condition string } `yaml:"depends_on"`
		Healthcheck  map[string]any
		Volumes      []string
		Ports        []string
	}
	var file struct {
		Services map[string]service
		Volumes  map[string]any
	}
	text, err := os.ReadFile("../../deploy/docker/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Services) != 4 {
		t.Errorf("%d services", len(file.Services))
	}
	for name, s := range file.Services {
		if image, _ := s.Image.(string); !regexp.MustCompile(`:(v\d+\.\d+\.\d+|local)$`).MatchString(image) {
			t.Errorf("%s: the image %v has no version", name, s.Image)
		}
		for other, d := range s.Depends {
			if _, ok := file.Services[other]; !ok {
				t.Errorf("%s waits for %s, which is not there", name, other)
			} else if d.Condition == "service_healthy" && file.Services[other].Healthcheck["test"] == nil {
				t.Errorf("%s waits for the health of %s, which has no check", name, other)
			}
		}
		for _, v := range s.Volumes {
			volume, _, _ := strings.Cut(v, ":")
			if _, ok := file.Volumes[volume]; !ok {
				t.Errorf("%s: there is no volume %s", name, volume)
			}
		}
	}
	for name, verb := range map[string]*cobra.Command{"rota": serveCommand(), "files": registerCommand()} {
		command := file.Services[name].Command
		if len(command) == 0 || command[0] != verb.Name() {
			t.Fatalf("%s does not run rota %s: %v", name, verb.Name(), command)
		}
		for _, arg := range command[1:] {
			if arg == "--" {
				break
			}
			if flag, ok := strings.CutPrefix(arg, "--"); ok && verb.Flags().Lookup(flag) == nil {
				t.Errorf("rota %s has no %s", verb.Name(), arg)
			}
		}
	}
	if file.Services["hello"].Entrypoint == nil {
		t.Error("the second service is not another program")
	}
}

// The package has what it should, readable to all whoever has built it, but for the configuration; what is below /etc is the operator's.
// That it can be installed, and leaves nothing when it is purged, is for deploy/debian/check.
func TestPackage(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is not there")
	}
	dir := t.TempDir()
	rota := filepath.Join(dir, "rota")
	if err := os.WriteFile(rota, []byte("#!/bin/sh\nROTA_TEST_MAIN=1 exec "+os.Args[0]+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	output := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v %s", name, args, err, out)
		}
		return string(out)
	}
	output("sh", "-c", "umask 077; exec ../../deploy/debian/build v1.2.3 "+rota+" "+dir)
	packages, err := filepath.Glob(filepath.Join(dir, "rota_1.2.3_*.deb"))
	if err != nil || len(packages) != 1 {
		t.Fatal(packages, err)
	}

	want := map[string]string{
		"/usr/bin/rota":                               "-rwxr-xr-x",
		"/etc/rota/rota.yaml":                         "-rw-r-----",
		"/etc/logrotate.d/rota":                       "-rw-r--r--",
		"/usr/lib/sysusers.d/rota.conf":               "-rw-r--r--",
		"/usr/lib/systemd/system/rota.service":        "-rw-r--r--",
		"/usr/share/bash-completion/completions/rota": "-rw-r--r--",
		"/usr/share/doc/rota/copyright":               "-rw-r--r--",
		"/usr/share/doc/rota/examples/rota.socket":    "-rw-r--r--",
		"/usr/share/doc/rota/rota.example.yaml":       "-rw-r--r--",
		"/usr/share/man/man5/rota.yaml.5.gz":          "-rw-r--r--",
		"/usr/share/zsh/vendor-completions/_rota":     "-rw-r--r--",
	}
	pages := filepath.Join(dir, "man")
	if status, _, errs := command(t, "man", pages); status != 0 {
		t.Fatal(errs)
	}
	list, err := filepath.Glob(filepath.Join(pages, "*.1"))
	if err != nil || len(list) < 20 {
		t.Fatal(list, err)
	}
	for _, page := range list {
		want["/usr/share/man/man1/"+filepath.Base(page)+".gz"] = "-rw-r--r--"
	}
	for line := range strings.Lines(output("dpkg-deb", "-c", packages[0])) {
		f := strings.Fields(line) // mode, owner, size, date, time, name
		mode, owner, name := f[0], f[1], strings.TrimPrefix(f[5], ".")
		switch {
		case owner != "root/root":
			t.Errorf("%s is %s's", name, owner)
		case strings.HasSuffix(name, "/"):
			if mode != "drwxr-xr-x" {
				t.Errorf("%s is %s", name, mode)
			}
		case want[name] != mode:
			t.Errorf("%s is %s, want %q", name, mode, want[name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is missing", name)
	}
	if got := output("dpkg-deb", "-I", packages[0], "conffiles"); got != "/etc/rota/rota.yaml\n/etc/logrotate.d/rota\n" {
		t.Errorf("the operator's are %q", got)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		text, err := os.ReadFile("../../deploy/debian/" + script)
		if err != nil || output("dpkg-deb", "-I", packages[0], script) != string(text) {
			t.Errorf("%s is another one (%v)", script, err)
		}
	}
}

// Scripts of the package are ones that a shell can read.
func TestPackageScripts(t *testing.T) {
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		if out, err := exec.Command("sh", "-n", "../../deploy/debian/"+name).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
}
