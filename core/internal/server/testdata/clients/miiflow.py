import os

import requests

# Define the API endpoint and headers
url = os.environ["BASE"] + "/api/v1/agent_run"
headers = {
    "Authorization": "Bearer " + os.environ["GLOBAL"],
    "Content-Type": "application/json"
}

# Define the payload
data = {
    "agent_id": "agent_xxxYYYzzz",
    "input": {
        "input_parameter_1": 1,
        "input_parameter_1": 2,
        "input_parameter_1": 3
    }
}

# Make the POST request
response = requests.post(url, headers=headers, json=data)

# Print the response
print("Status Code:", response.status_code)
print("Response Body:", response.json())
