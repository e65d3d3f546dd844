package server

import (
	"fmt"
	"io"
	"net/http"
	"strings"

	"berth/orchestrator"
	"berth/session/api"
)

// builtin leads the names of the images made from built-in recipes.
const builtin = "localhost/berth/"

func (s *Server) images(w http.ResponseWriter, r *http.Request, _ api.Caller) error {
	list, err := s.Images.List(r.Context())
	if err != nil {
		return err
	}
	out := api.ImageList{Images: list, Recipes: s.Images.Recipes()}
	if out.Images == nil {
		out.Images = []orchestrator.Image{}
	}
	if out.Recipes == nil {
		out.Recipes = []string{}
	}
	return writeJSON(w, http.StatusOK, out)
}

// transfer runs a change of images whose progress is streamed.
func (s *Server) transfer(w http.ResponseWriter, do func(out *lines) ([]orchestrator.Image, error)) error {
	out := newLines(w)
	images, err := do(out)
	return out.finish(api.ImageEvent{Images: images, Done: true}, func(e *api.Error) any { return api.ImageEvent{Error: e} }, err)
}

func progressTo(out *lines) func(orchestrator.Progress) {
	return func(p orchestrator.Progress) { out.progress(api.ImageEvent{Progress: &p}) }
}

func (s *Server) imageBuild(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	var req api.BuildRequest
	if err := readJSON(w, r, maxBody, &req); err != nil {
		return err
	}
	if len(req.Names) == 0 {
		return fmt.Errorf("images: %w: none named", orchestrator.ErrInvalid)
	}
	if (req.Force || req.NoCache) && !c.Root() {
		return api.WithHint(fmt.Errorf("user %q: %w to rebuild images that are up to date", c.Name, api.ErrForbidden), "run the command as root")
	}
	return s.transfer(w, func(out *lines) ([]orchestrator.Image, error) {
		return nil, s.Images.Build(r.Context(), req.Names, req.BuildOptions, func(b api.Build) { out.progress(api.ImageEvent{Build: &b}) })
	})
}

// ref reads a request that names one image.
func ref(w http.ResponseWriter, r *http.Request) (api.RefRequest, error) {
	var req api.RefRequest
	if err := readJSON(w, r, maxBody, &req); err != nil {
		return req, err
	}
	if req.Ref == "" {
		return req, fmt.Errorf("image: %w: must be named", orchestrator.ErrInvalid)
	}
	return req, nil
}

func (s *Server) imagePull(w http.ResponseWriter, r *http.Request, c api.Caller) error {
	req, err := ref(w, r)
	if err != nil {
		return err
	}
	if !c.Root() {
		full, err := s.Images.Resolve(req.Ref)
		if err != nil {
			return err
		}
		if req.Insecure || strings.HasPrefix(full, builtin) {
			return api.WithHint(fmt.Errorf("user %q: %w to pull without verification or in place of a built-in image", c.Name, api.ErrForbidden),
				"run the command as root")
		}
	}
	return s.transfer(w, func(out *lines) ([]orchestrator.Image, error) {
		image, err := s.Images.Pull(r.Context(), req.Ref, orchestrator.TransferOptions{
			Insecure: req.Insecure, Anonymous: !c.Root(), Progress: progressTo(out),
		})
		return []orchestrator.Image{image}, err
	})
}

func (s *Server) imagePush(w http.ResponseWriter, r *http.Request, _ api.Caller) error {
	req, err := ref(w, r)
	if err != nil {
		return err
	}
	return s.transfer(w, func(out *lines) ([]orchestrator.Image, error) {
		return nil, s.Images.Push(r.Context(), req.Ref, orchestrator.TransferOptions{Insecure: req.Insecure, Progress: progressTo(out)})
	})
}

func (s *Server) imageImport(w http.ResponseWriter, r *http.Request, _ api.Caller) error {
	// Progress goes out while the archive still comes in.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	return s.transfer(w, func(out *lines) ([]orchestrator.Image, error) {
		images, err := s.Images.Import(r.Context(), r.Body, orchestrator.TransferOptions{Progress: progressTo(out)})
		if err == nil {
			// An archive may be followed by padding, which the client still wants to be rid of.
			_, err = io.Copy(io.Discard, r.Body)
		}
		return images, err
	})
}

func (s *Server) imageExport(w http.ResponseWriter, r *http.Request, _ api.Caller) error {
	refs := r.URL.Query()["ref"]
	if len(refs) == 0 {
		return fmt.Errorf("images: %w: none named", orchestrator.ErrInvalid)
	}
	// The type is set at the first byte, so that an error before it is still JSON.
	return s.Images.Export(r.Context(), typed{w, "application/x-tar"}, refs...)
}

type typed struct {
	http.ResponseWriter
	contentType string
}

func (t typed) Write(p []byte) (int, error) {
	t.Header().Set("Content-Type", t.contentType)
	return t.ResponseWriter.Write(p)
}

func (s *Server) imageTag(w http.ResponseWriter, r *http.Request, _ api.Caller) error {
	var req api.TagRequest
	if err := readJSON(w, r, maxBody, &req); err != nil {
		return err
	}
	if req.Src == "" || req.Dst == "" {
		return fmt.Errorf("images: %w: src and dst must be named", orchestrator.ErrInvalid)
	}
	if err := s.Images.Tag(r.Context(), req.Src, req.Dst); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) imageRemove(w http.ResponseWriter, r *http.Request, _ api.Caller) error {
	name := r.URL.Query().Get("ref")
	if name == "" {
		return fmt.Errorf("image: %w: query ref must name it", orchestrator.ErrInvalid)
	}
	if err := s.Images.Remove(r.Context(), name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) imagePrune(w http.ResponseWriter, r *http.Request, _ api.Caller) error {
	freed, err := s.Images.Prune(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, api.PruneResult{Freed: freed})
}
