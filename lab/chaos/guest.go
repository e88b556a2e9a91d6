package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"
)

// lingers is how long a page is still served after its pod was told to end:
// until nobody sends anybody there any more.
const lingers = 2 * time.Second

// Guest is what the workload's pods run: it ends with the context.
func Guest(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return servePage(ctx)
	case len(args) == 2 && args[0] == "stamp":
		return stamp(ctx, args[1])
	}
	return fmt.Errorf("a guest of a drill cannot %q", args)
}

// servePage answers with the pod's name.
func servePage(ctx context.Context) error {
	server := &http.Server{
		Addr: fmt.Sprintf(":%d", pagePort), ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getenv("POD")) }),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	time.Sleep(lingers)
	if err := server.Shutdown(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
