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

// Scripts of the package are ones that a shell can read.
func TestPackageScripts(t *testing.T) {
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		if out, err := exec.Command("sh", "-n", "../../deploy/debian/"+name).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
}
