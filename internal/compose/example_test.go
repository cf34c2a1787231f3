package compose_test

import (
	"context"
	"fmt"

	"github.com/tutti-run/tutti/internal/compose"
)

func ExampleLoad() {
	p, err := compose.Load(context.Background(), compose.Options{
		Files:       []string{"testdata/works/override/compose.yaml", "testdata/works/override/prod.yaml"},
		Environment: []string{"COMPOSE_PROJECT_NAME=site"}, // os.Environ(), in a program
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, w := range p.Deployment.Workloads {
		fmt.Println(p.Deployment.Application, w.Name, w.Count, w.Template.Tasks[0].Image)
	}
	// Output: site web 3 web:2
}

func ExampleLoad_refused() {
	_, err := compose.Load(context.Background(), compose.Options{Files: []string{"testdata/works/override/compose.yaml"}})
	fmt.Println(err)
	// Output: testdata/works/override/compose.yaml:4: services.web.build: building images is not supported yet; build and push the image, and name it in image
}
