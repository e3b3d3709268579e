"""What the fork server imports before it forks: a shard then begins with vLLM already loaded.

Importing this ties the server's life, and with it the shards', to the pool's; for nobody else.
"""

import tests.support.doomed_shard  # noqa: F401
from services.lifecycle import end_with_parent

end_with_parent()
