"""An OpenAI-compatible server for one model or pair: `kinfolk serve`."""
